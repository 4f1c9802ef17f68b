// The most similar points of every point, from tiles of dot products that are seen once.
#pragma once

#include <memory>

#include "quantiles.hpp"

namespace epruner {

// A tile of inner products X[rows] X[columns]^T and what turns it into similarities.
template <class T>
struct Tile {
  const T* dots;  // (rows, columns), contiguous
  Index first_row, rows, first_column, columns;
};

// Keeps at least the `want` largest similarities of every point. A similarity is
// 2 <x, y> - ||x||² - ||y||² where norms are given, else <x, y>.
template <class T>
class Nearest {
 public:
  Nearest(Index n, Index want, const T* norms);

  // Offer a tile to its rows and, if it lies off the diagonal, to its columns. Tiles that share no
  // row and no column may be offered at the same time.
  void offer(const Tile<T>& tile);

  // While tiles are offered, count the similarities in [low, high], every unordered pair once;
  // about `expected` are to come.
  void open_rank_window(T low, T high, Index expected);
  const RankWindow<T>& rank_window() const { return *rank_window_; }

  Index want() const { return want_; }
  // Point i's list: `size(i)` columns in no order. Everything not listed is at most `unlisted(i)`.
  Index size(Index i) const { return rows_[as_size(i)].size; }
  const Column* columns(Index i) const { return columns_.get() + i * room_; }
  T unlisted(Index i) const { return rows_[as_size(i)].threshold; }

 private:
  struct Row {
    Index size = 0;
    T threshold = minus_infinity<T>;
  };
  void push(Index i, Column column, T similarity);

  Index n_, want_, room_;
  const T* norms_;
  std::vector<Row> rows_;
  std::unique_ptr<T[]> values_;        // (n, room)
  std::unique_ptr<Column[]> columns_;  // (n, room)
  std::unique_ptr<RankWindow<T>> rank_window_;
};

}  // namespace epruner
