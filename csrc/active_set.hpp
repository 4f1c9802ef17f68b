// The active-set solver: only pairs that were ever a row's maximum or ever had R > 0 hold messages.
//
// A pair (i, k) that was never its row's maximum satisfies R = (1 - damping^t) S - mu[i] at every
// t; one that never had R > 0 either, A = abar[k]. What follows from these needs neither storage
// nor work and is rebuilt exactly when it becomes interesting. Each row lists its most similar
// points. See docs/affinity-propagation.md for the derivation.
#pragma once

#include "candidate_selection.hpp"
#include "dense.hpp"

namespace epruner {

class ActiveSet {
 public:
  ActiveSet(Index n, const double* preference, const Jitter& jitter, const Settings& settings);

  // Where candidates come from; see CandidateLists.
  template <class T>
  void refill(const Indices& rows, const RowSource<T>& source, const Refinement<T>& refinement,
              T* medians = nullptr) {
    // Nearly all rows run out at once where clusters are large.
    const bool eager = 4 * n_pending_ > 3 * n_;
    candidates_.refill(rows, source, refinement, abar_.data(), eager, workers_, medians);
  }
  void fill_from_csr(const Index* offsets, const Column* columns, const double* similarities) {
    candidates_.fill_from_csr(offsets, columns, similarities, abar_.data());
  }
  template <class T>
  void fill_from_nearest(const Nearest<T>& nearest, const Refinement<T>& refinement) {
    candidates_.fill_from_nearest(nearest, refinement, abar_.data());
  }

  // Forget all messages, keep the candidates: the same points with other preferences and damping.
  void restart(const double* preference, double damping);

  // The most similar exemplars of all points; see CandidateLists.
  void assign(const Indices& position, Indices& labels) const;

  // Continue for at most so many iterations, until the stop rule holds, max_iter is reached or some
  // rows need more candidates.
  Status iterate(const Poll& poll, Index iterations = std::numeric_limits<Index>::max());

  // Those that cannot finish this iteration, ascending.
  Indices rows_needing_candidates() const;
  // Whether these would make the lists so long that dense passes are cheaper.
  bool crowded() const;
  // Write this iteration's messages of all pairs, and which rows have finished it.
  template <class T>
  std::vector<std::uint8_t> expand(Dense<T>& dense) const;

  Outcome outcome(Status status) const;
  const Diagonal& diagonal() const { return diagonal_; }
  const Jitter& jitter() const { return jitter_; }
  const Settings& settings() const { return settings_; }
  Index size() const { return n_; }
  Index iteration() const { return t_; }
  Index n_candidates() const { return n_candidates_; }
  Index longest_list() const { return candidates_.longest(); }
  Workers& workers() { return workers_; }

 private:
  using Row = CandidateLists::Row;
  // Rows are worked on in fixed blocks; a block gathers its positive responsibilities in row order.
  struct RowBlock {
    std::vector<Index> pending;
    std::vector<Column> column;
    std::vector<double> value;
    Index positives = 0;
  };

  void prepare_blocks();
  Status iterate_shared(const Poll& poll, Index iterations);
  void begin_iteration();
  static void prefetch(const Row& row);
  ClosedForm closed_form(Index i) const;
  void run_block(RowBlock& block, Index first, Index last, Arena& arena);
  bool update_responsibilities(Index i, const RowTop& top, RowBlock& block, Arena& arena);

  Index n_;
  Jitter jitter_;
  Settings settings_;
  Diagonal diagonal_;
  CandidateLists candidates_;
  Workers workers_;
  std::vector<double> mu_, abar_;
  double abar_max_ = 0;
  double decay_ = 1;  // damping^t
  Index t_ = 0;
  bool mid_iteration_ = false;
  Index n_pending_ = 0;  // rows that had not finished when iterations last stopped
  Index n_candidates_ = 0;
  Index block_rows_ = 0;
  std::vector<RowBlock> blocks_;
};

}  // namespace epruner
