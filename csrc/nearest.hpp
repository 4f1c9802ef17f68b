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

// Lists of what the products tell. Points are known by their positions in the order in which they
// are met, best a random one; `points` says who is where.
template <class T>
class ProductLists {
 public:
  // At least the `want` largest similarities of each of n points.
  ProductLists(Index n, Index want, const Column* points)
      : points_(points), lists_(n, n - 1, want) {}

  T threshold(Index position) const { return lists_.threshold(position); }
  void start_at(Index position, T threshold) { lists_.start_at(position, threshold); }
  // What push() of these will need.
  void prefetch(Index position, Index) const { lists_.prefetch(position); }
  // A similarity that is at least threshold(position).
  void push(Index position, Index other, T similarity) {
    lists_.push(position, points_[other], similarity);
  }

  const Column* points() const { return points_; }
  const TopLists<T>& lists() const { return lists_; }  // by position

 private:
  const Column* points_;
  TopLists<T> lists_;
};

// Similarities are 2 <x, y> - ||x||² - ||y||² where norms are given, else <x, y>. `Lists` decides
// what is kept of those that reach its thresholds.
template <class T, class Lists = ProductLists<T>>
class Nearest {
 public:
  Nearest(Index n, const T* norms, Lists lists);

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
  RankWindow<T>* rank_window() { return rank_window_.get(); }
  // While tiles are offered, look for the median of every point's similarities.
  void open_medians();
  // Medians by position, each with `own` for the point itself; NaN where one was lost.
  void medians(T own, T* out, int threads);

  Lists& lists() { return lists_; }
  const Lists& lists() const { return lists_; }
  // Squared norms by position, where they were given.
  void set_norms(const T* norms) {
    if (no_norms_.empty()) norms_ = norms;
  }

 private:
  struct RowHits;

  template <class Look, class Watch>
  void offer(const Tile<T>& tile, const Look& look, const Watch& watch);
  void offer_with_medians(const Tile<T>& tile);

  Index n_;
  std::vector<T> no_norms_;
  const T* norms_;
  T scale_;
  Lists lists_;
  std::unique_ptr<RankWindow<T>> rank_window_;
  std::unique_ptr<RowMedians<T>> medians_;
};

}  // namespace epruner
