// The active-set solver: only pairs whose messages differ from what follows from their row and
// column hold any.
//
// A pair (i, k) that was never its row's maximum satisfies R = g S - mu[i] at every t, g being
// 1 - damping^t; one that never had R > max(0, b[k]) either, A = abar[k]. What follows from these
// needs neither storage nor work and is rebuilt exactly when it becomes interesting. Each row lists
// its most similar points. Where more than these have R > 0, which happens to nearly all pairs at
// once while clusters form, one read of the row of S sums them: a burst. See
// docs/clustering/mathematics.md for the derivation.
#pragma once

#include <map>
#include <string>
#include <variant>

#include "candidate_selection.hpp"
#include "prominent_columns.hpp"

namespace epruner {

// The rows of all n points, or of those in a range of whole blocks. Then other sets, in processes
// of their own, hold the rest, and callers carry between them what an iteration sums.
class ActiveSet {
 public:
  // Everything between two iterations, by name: first numbers of the set and of all columns, then
  // one of each point's, lists of these one after the other, bounds on prominent columns.
  using Values = std::variant<std::vector<double>, std::vector<float>, std::vector<Index>,
                              std::vector<Column>, std::vector<std::uint8_t>>;
  using Saved = std::map<std::string, Values>;

  ActiveSet(Index n, Range points, const double* preference, const Jitter& jitter,
            const Settings& settings);

  // Rows of a block, of which the first begins with point 0.
  static Index block_rows(Index n);

  // Give rows, ascending, their first candidates or, where iterations stopped for them, what they
  // need. On request, take the medians of the rows, exact own entries included. Throws
  // std::invalid_argument where the first candidates show what is no similarity.
  template <class T>
  void refill(const Indices& rows, const RowSource<T>& source, const Refinement<T>& refinement,
              T* medians = nullptr);
  void fill_from_csr(const Index* offsets, const Column* columns, const double* similarities) {
    candidates_.fill_from_csr(offsets, columns, similarities, abar_.data());
  }
  template <class T>
  void fill_from_nearest(const Nearest<T>& nearest, const Refinement<T>& refinement) {
    candidates_.fill_from_nearest(nearest, refinement, abar_.data());
  }
  void fill_from_lists(const Index* offsets, const Column* columns, const double* similarities,
                       const double* bounds) {
    candidates_.fill_from_lists(offsets, columns, similarities, bounds, abar_.data());
  }

  // Forget all messages, keep the candidates: the same points with other preferences and damping.
  void restart(const double* preference, double damping);
  // Keep the messages, too; the stop rule and max_iter count from here. Between iterations only.
  void continue_with(const double* preference, double damping);

  // Between iterations only; what is restored goes on to the bit as the set would that was saved.
  Saved save() const;
  // Throws std::invalid_argument where something is missing or of another size.
  void restore(const Saved& saved);

  // The most similar exemplars of the points; see CandidateLists.
  void assign(const Indices& position, Indices& labels) const;

  // Continue for at most so many iterations, until the stop rule holds, max_iter is reached or some
  // rows need candidates.
  Status iterate(const Poll& poll, Index iterations = std::numeric_limits<Index>::max());
  // The same with similarities (n, n) in memory, from which rows are refilled at once.
  template <class T>
  Status iterate(const T* S, const Poll& poll,
                 Index iterations = std::numeric_limits<Index>::max());
  // The same with features, from which single pairs are at hand.
  template <class T>
  Status iterate(const Features<T>& features, const Poll& poll,
                 Index iterations = std::numeric_limits<Index>::max());

  // An iteration of sets that share the rows: first each runs its own, as far as they get with the
  // pairs that are at hand. Returns `running` when they are done.
  Status run_rows(const Poll& poll);
  template <class T>
  Status run_rows(const KnownPairs<T>& pairs, const Poll& poll);
  // Where rows need candidates, what columns must meet to do without; the same demands, those of
  // all sets, make columns prominent. Returns how many were before; bounds of the new ones come
  // from the pairs at hand.
  std::vector<ProminentColumns::Demand> demands() const;
  Index add_prominent(std::vector<ProminentColumns::Demand> demands) {
    return prominent_.add(abar_.data(), std::move(demands));
  }
  template <class T>
  void bound_prominent(Index known, const KnownPairs<T>& pairs);
  const std::vector<Column>& prominent() const { return prominent_.columns(); }
  // refill() in two steps: which pairs it takes, and what they are. Medians take `own` for the
  // similarity of a point to itself.
  template <class T>
  void plan_refill(const Indices& rows, const RowSource<T>& source, const Refinement<T>& refinement,
                   T own, T* medians);
  const std::vector<Column>& planned() const { return planned_columns_; }
  Indices planned_rows() const;
  void finish_refill(const double* similarities);
  // Then the sums of every column's max(0, R) over the blocks, one after the other from those of
  // the blocks before them: of the columns from `first` to `last`.
  void add_support(Index first, Index last, double* sums);
  // Then what follows for the points from the sums of their columns, ...
  Roles finish_rows(const double* support);
  // ... and for all columns.
  double* total() { return diagonal_.total.data(); }

  // Those that iterations stopped for, ascending.
  Indices rows_needing_candidates() const;
  // How many candidates these rows will list if each gets as many as it usually does.
  Index n_candidates_needed() const;

  Outcome outcome(Status status) const;
  const Diagonal& diagonal() const { return diagonal_; }
  const Jitter& jitter() const { return jitter_; }
  const Settings& settings() const { return settings_; }
  Index size() const { return n_; }
  Range points() const { return points_; }
  Index iteration() const { return t_; }
  bool mid_iteration() const { return mid_iteration_; }
  Index n_candidates() const { return n_candidates_; }
  Index longest_list() const { return candidates_.longest(); }
  Workers& workers() { return workers_; }

 private:
  using Row = CandidateLists::Row;
  // What is at hand of similarities while iterating, if anything: rows, to refill point i at once,
  // in whose block's `support` a burst goes, on this thread; and those of a row in some columns.
  struct Source {
    std::function<void(Index i, double* support, std::size_t thread)> refill;
    std::function<void(Index i, const Column* columns, Index count, double* out)> similarities;
  };

  struct Planned {
    Index row;
    Addition addition;
  };

  // What a row lacks to finish an iteration: its first candidates, a look at its unlisted pairs
  // after a burst, more candidates for its maximum, or its unlisted pairs that may have R > 0.
  enum class Lack : std::uint8_t { everything, look, candidates, positives };
  static constexpr Index kNever = -2;
  struct RowState {
    Lack lack = Lack::everything;
    std::uint8_t bursts = 0;  // so far, up to kMostBursts
    Index burst_at = kNever;  // the iteration of the last
    double most = 0;          // A of unlisted pairs with which its candidates would do
  };
  // Rows are worked on in fixed blocks, each of which sums the positive responsibilities of its
  // rows in their order.
  struct RowBlock {
    std::vector<Index> waiting;
    Index first, last;
  };

  Status iterate_with(const Source& source, const Poll& poll, Index iterations);
  Status iterate_shared(const Source& source, const Poll& poll, Index iterations);
  Status run_all(const Source& source, bool extend, const Poll& poll);
  void begin_iteration();
  void leave_out_prominent();
  void sum_support();
  static void prefetch(const Row& row);
  IterationTerms terms() const {
    return {settings_.damping, diagonal_.total.data(),    abar_.data(),
            abar_max_,         prominent_.availability(), prominent_.stride()};
  }
  std::size_t at(Index i) const { return as_size(i - points_.first); }
  ClosedForm closed_form(Index i) const { return {grown_, mu_[at(i)]}; }
  double self(Index i) const { return diagonal_.a[at(i)] + diagonal_.preference[at(i)]; }
  double* support_of(Index i) { return support_.data() + (i - points_.first) / block_rows_ * n_; }
  bool none_waits() const;
  bool promote(const Source& source);
  void bound_prominent_by(Index known, const Source& source);
  void activate_prominent(Index i, double second, const Source& source, Arena& arena);
  void run_block(RowBlock& block, const Source& source, bool extend, std::size_t thread);
  bool run_row(Index i, bool again, double* support, const Source& source, Arena& arena);
  template <class T>
  bool refill_row(Index i, const T* x, const Refinement<T>& refinement, double* support,
                  Scratch<T>& scratch, Arena& arena);
  template <class T>
  double least_to_look_at(Index i, const T* x, const Refinement<T>& refinement) const;
  template <class T>
  Index list_or_burst(Index i, const T* x, double* support, Scratch<T>& scratch);
  template <class T, class Visit>
  void each_row(const Indices& rows, const RowSource<T>& source, const Visit& visit);
  Status run_rows_with(const Source& source, const Poll& poll);
  void count_candidates();
  Roles finish_rows();

  Index n_;
  Range points_;
  Jitter jitter_;
  Settings settings_;
  Diagonal diagonal_;
  CandidateLists candidates_;
  ProminentColumns prominent_;
  Workers workers_;
  std::vector<RowState> states_;
  std::vector<double> mu_, abar_, abar_before_;
  double abar_max_ = 0, total_min_ = 0;
  double grown_ = 0;  // 1 - damping^t
  Index t_ = 0;
  bool mid_iteration_ = false;
  Index n_candidates_ = 0;
  Index block_rows_ = 0;
  std::vector<RowBlock> blocks_;
  std::vector<double> support_;  // (blocks, n)
  std::vector<Planned> planned_;
  std::vector<Column> planned_columns_;
};

}  // namespace epruner
