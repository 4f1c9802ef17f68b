// What a sweep over tiles of inner products finds, every tile seen once: the most similar points of
// every point, and order statistics.
#pragma once

#include <memory>

#include "quantiles.hpp"
#include "row_medians.hpp"
#include "top_lists.hpp"

namespace epruner {

// A tile of inner products X[rows] X[columns]^T. Tiles with first_row == first_column hold the
// pairs of their rows among themselves, too; these count once.
template <class T>
struct Tile {
  const T* dots;  // (rows, columns), contiguous
  Index first_row, rows, first_column, columns;
};

// Similarities are 2 <x, y> - ||x||² - ||y||² where norms are given, else <x, y>. Points are met in
// an order of the caller's, best a random one, by their positions in it; `points` says who is
// where.
template <class T>
class Nearest {
 public:
  // Keeps at least the `want` largest similarities of each of n points.
  Nearest(Index n, Index want, const T* norms, const Column* points);

  static Index bytes_needed(Index n, Index want, bool medians) {
    return TopLists<T>::bytes_needed(n, n - 1, want) +
           (medians ? RowMedians<T>::bytes_needed(n, n) : 0);
  }

  // Before any tile: inner products (rows, columns) of the points from `first_row` on with a random
  // sample, from which every list gets a first threshold. About `rank` of the sample reach it.
  void start_from_sample(const Tile<T>& tile, Index rank);

  // Offer a tile to its rows and its columns. Every pair is in one tile. Tiles that share no row
  // and no column may be offered at the same time; what is found depends on the order in which a
  // point meets others, not on threads.
  void offer(const Tile<T>& tile);

  // While tiles are offered, count the similarities in [low, high], every unordered pair once;
  // about `expected` are to come.
  void open_rank_window(T low, T high, Index expected);
  const RankWindow<T>& rank_window() const { return *rank_window_; }
  // While tiles are offered, look for the median of every point's similarities.
  void open_medians();
  // Medians by point, each with `own` for the point itself; NaN where one was lost.
  void medians(T own, T* out, int threads);

  const TopLists<T>& lists() const { return lists_; }  // by position
  const Column* points() const { return points_; }

 private:
  struct RowHits;

  void push(Index position, Index other, T similarity) {
    lists_.push(position, points_[other], similarity);
  }
  template <class Look, class Watch>
  void offer(const Tile<T>& tile, const Look& look, const Watch& watch);
  void offer_with_medians(const Tile<T>& tile);

  Index n_;
  std::vector<T> no_norms_;
  const T* norms_;
  T scale_;
  const Column* points_;
  TopLists<T> lists_;
  std::unique_ptr<RankWindow<T>> rank_window_;
  std::unique_ptr<RowMedians<T>> medians_;
};

}  // namespace epruner
