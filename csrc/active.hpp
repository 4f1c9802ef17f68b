// The active-set solver: only pairs that were ever a row's maximum or ever had R > 0 hold messages.
//
// A pair (i, k) that was never its row's maximum satisfies R = (1 - damping^t) S - mu[i] at every
// t; one that never had R > 0 either, A = abar[k]. What follows from these needs neither storage
// nor work and is rebuilt exactly when it becomes interesting. Each row lists its most similar
// points. See docs/affinity-propagation.md for the derivation.
#pragma once

#include <memory>

#include "decode.hpp"
#include "dense.hpp"
#include "lists.hpp"
#include "nearest.hpp"
#include "team.hpp"

namespace epruner {

// Rows of similarities in memory: all of them, or a tile with those of some points in their order.
// With norms, a tile of inner products, from which similarities are made row by row.
template <class T>
struct RowSource {
  const T* base;
  Index stride;
  bool by_point;  // row of point i, the q-th asked for: base + (by_point ? i : q) * stride
  const T* norms = nullptr;

  const T* row(Index q, Index i, T* scratch) const {
    const T* entries = base + (by_point ? i : q) * stride;
    if (!norms) return entries;
    similarities_from_dots(stride, entries, norms[i], norms, scratch);
    return scratch;
  }
};

// Similarities that were computed by a matrix product, and what they really are.
template <class T>
struct Refinement {
  const Features<T>* exact = nullptr;  // evaluates listed pairs again; nullptr: entries are exact
  const T* norms = nullptr;            // squared norms of the features; nullptr: they are 1
  double unit = 0;                     // relative error of the product

  // How far a similarity of about `s` of point i may be from what the product gave.
  double error(Index i, double s) const {
    return exact ? unit * ((norms ? static_cast<double>(norms[i]) : 1.0) + std::fabs(s)) : 0.0;
  }
};

class ActiveSet {
 public:
  ActiveSet(Index n, const double* preference, const Jitter& jitter, const Settings& settings);

  // Give each of these rows its next candidates; on request, take its median, own entry included.
  template <class T>
  void extend(const Indices& rows, const RowSource<T>& source, const Refinement<T>& refinement,
              T* medians = nullptr);

  // Give every row its candidates at once: the stored entries of a sparse matrix, all there is, ...
  void adopt(const Index* offsets, const Column* columns, const double* similarities);
  // ... or the nearest neighbours that a sweep over tiles has found.
  template <class T>
  void adopt(const Nearest<T>& nearest, const Refinement<T>& refinement);

  // Forget all messages, keep the candidates: the same points with other preferences and damping.
  void restart(const double* preference, double damping);

  // The most similar exemplar of every point, read off its list: position[k] >= 0 where k is one.
  // kUnassigned where the list does not tell.
  void assign(const Indices& position, Indices& labels) const;

  // Run body(), in which all that can be shared between threads is, if that is worth their start.
  template <class Body>
  auto together(bool worthwhile, const Body& body) {
    if (team_ || !worthwhile) return body();
    const int threads = Team::advisable(settings_.threads);
    if (threads == 1) return body();
    return Team::run(threads, [&](Team& team) {
      team_ = &team;
      const Leave leave{*this};
      return body();
    });
  }

  // Continue for at most so many iterations, until the stop rule holds, max_iter is reached or some
  // rows need more candidates.
  Status iterate(const Poll& poll, Index iterations = std::numeric_limits<Index>::max());

  // Rows that wait for candidates, ascending.
  Indices starved() const;
  // Whether serving the starved rows would make the lists so long that dense passes are cheaper.
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
  Index listed() const { return listed_; }
  Index longest() const;

 private:
  struct Row : List {
    double below = std::numeric_limits<double>::infinity();  // raw entries from here up are listed
    double unlisted = std::numeric_limits<double>::infinity();  // bound on everything unlisted
  };
  // Rows are worked on in fixed blocks; a block gathers its positive responsibilities in row order.
  struct Block {
    std::vector<Index> pending;
    std::vector<Column> column;
    std::vector<double> value;
    Index positives = 0;
  };

  template <class T>
  struct Scratch {  // of one thread that extends lists
    std::vector<T> row, lanes;
    std::vector<Column> columns;
    std::vector<std::uint8_t> listed;
    Found found;

    explicit Scratch(Index n);
  };

  template <class T>
  bool serve(Index i, const T* x, const Refinement<T>& refinement, Scratch<T>& scratch,
             Arena& arena);
  template <class T>
  double uncertainty(Index i, double s, const Refinement<T>& refinement) const;
  template <class T>
  double bound(Index i, double low, bool everything, const Refinement<T>& refinement) const;
  void prepare_blocks();
  struct Leave {
    ActiveSet& set;
    ~Leave() { set.team_ = nullptr; }
  };
  template <class Work>
  void share(Index pieces, const Work& work) {
    if (team_) return team_->distribute(pieces, work);
    for (Index piece = 0; piece < pieces; ++piece) work(piece, std::size_t{0});
  }

  Status iterate_shared(const Poll& poll, Index iterations);
  void begin_iteration();
  static void prefetch(const Row& row);
  ClosedForm closed_form(Index i) const;
  void run_block(Block& block, Index first, Index last, Arena& arena);
  bool settle(Index i, const RowTop& top, Block& block, Arena& arena);
  Index next_want(const Row& row) const;

  Index n_;
  Jitter jitter_;
  Settings settings_;
  Diagonal diagonal_;
  std::vector<Row> rows_;
  std::vector<double> mu_, abar_;
  double abar_max_ = 0;
  double decay_ = 1;  // damping^t
  Index t_ = 0;
  bool mid_iteration_ = false;
  bool blocks_stale_ = true;
  Index starving_ = 0;  // rows that waited for candidates when iterations last stopped for some
  Index listed_ = 0;
  Index block_rows_ = 0;
  std::vector<Block> blocks_;
  std::vector<Arena> arenas_;  // one per thread
  Team* team_ = nullptr;       // while threads work together
};

// The whole of it for similarities (n, n) in memory: fills the lists, which must be new, and turns
// to dense passes once they get long. Throws std::bad_alloc where memory has no room for those.
template <class T>
Outcome solve_matrix(ActiveSet& lists, const T* S, bool dense_fits, const Poll& poll);

}  // namespace epruner
