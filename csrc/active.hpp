// The active-set solver: only pairs that were ever a row's maximum or ever had R > 0 hold messages.
//
// Every other pair (i, k) satisfies R = (1 - damping^t) S - mu[i] and A = abar[k] at every t, so its
// messages need neither storage nor work and can be rebuilt exactly when it becomes interesting.
// Each row keeps its most similar points in descending order; the first `active` of them hold
// messages, the others are candidates. See docs/affinity-propagation.md for the derivation.
#pragma once

#include <memory>

#include "dense.hpp"
#include "messages.hpp"

namespace epruner {

// Similarity of two points, evaluated one pair at a time without cancellation.
using ExactSimilarity = std::function<double(Index, Index)>;

// Rows of similarities in memory: all of them, or a tile with those of some points in their order.
template <class T>
struct RowSource {
  const T* base;
  Index stride;
  bool by_point;  // row of point i, the q-th asked for: base + (by_point ? i : q) * stride
  double error = 0;                         // how far an entry may be from the exact similarity
  const ExactSimilarity* exact = nullptr;   // evaluates candidates again, where given

  const T* row(Index q, Index i) const { return base + (by_point ? i : q) * stride; }
};

class ActiveSet {
 public:
  ActiveSet(Index n, const double* preference, const Jitter& jitter, const Settings& settings);

  // Give each of these rows its next candidates.
  template <class T>
  void extend(const std::vector<Index>& rows, const RowSource<T>& source);

  // Give every row its candidates at once, as compressed rows in any order. `unlisted[i]` is at
  // least the similarity of everything that row i does not list (-inf: nothing is left out).
  void adopt(const Index* offsets, const Column* columns, const double* similarities,
             const double* unlisted);

  // Continue until the stop rule holds, max_iter is reached or some rows need more candidates.
  Status iterate(const Poll& poll);

  // Rows that wait for candidates, ascending.
  std::vector<Index> starved() const;
  // Whether serving the starved rows would make the lists so long that dense passes are cheaper.
  bool crowded() const;
  // Write this iteration's messages of all pairs, and which rows have finished it.
  template <class T>
  std::vector<std::uint8_t> expand(Dense<T>& dense) const;

  Outcome outcome(Status status) const;
  const Diagonal& diagonal() const { return diagonal_; }
  Index iteration() const { return t_; }
  Index listed() const { return listed_; }
  Index active() const;
  Index longest() const;

 private:
  struct Row {
    double *s = nullptr, *r = nullptr, *a = nullptr;
    Column* column = nullptr;
    Index active = 0, listed = 0, capacity = 0;
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

  void reserve(Row& row, Index capacity);
  void fill(Row& row, Index i, Index found, const Column* columns, const double* similarities,
            double below, double unlisted, std::vector<std::pair<double, Column>>& order);
  void prepare_blocks();
  void begin_iteration();
  void run_block(Block& block, Index first, Index last);
  bool settle(Index i, Top2<double> top, Block& block);
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
  Index listed_ = 0;
  Index block_rows_ = 0;
  std::vector<Block> blocks_;
  std::vector<std::unique_ptr<double[]>> arena_;
  double* arena_next_ = nullptr;
  std::size_t arena_left_ = 0;
};

// The whole of it for similarities in memory: lists first, dense passes once lists get long.
template <class T>
Outcome solve_matrix(Index n, const T* S, Index stride, const double* preference,
                     const Jitter& jitter, const Settings& settings, const Poll& poll);

}  // namespace epruner
