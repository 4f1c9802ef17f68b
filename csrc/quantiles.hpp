// Order statistics of similarities, without sorting them and without keeping those seen once.
#pragma once

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "float_bits.hpp"
#include "tile_scan.hpp"

namespace epruner {

// The two finite entries around position fraction * (count - 1) of all finite entries in ascending
// order, and how far between them the position lies. Entries of -inf do not count; the diagonal of
// a square matrix is left out on request.
struct Quantile {
  double low = 0, high = 0, between = 0;
  bool empty = true;
};

template <class T>
Quantile quantile(Index n, const T* S, double fraction, bool diagonal, int threads);

// Median of every column of S (n, n), of its finite entries.
template <class T>
void column_medians(Index n, const T* S, T* medians, int threads);

// Median of the finite ones among values[0..n), which are reordered; `where` (n) is scratch.
template <class T>
T median(T* values, Index n, std::vector<Column>& where);

// The values at the ranks low and high, equal or neighbours, of values[0..n), which are reordered.
template <class T>
struct Neighbours {
  T lower, upper;

  T middle() const { return lower == upper ? upper : (lower + upper) / 2; }
};
template <class T>
Neighbours<T> select_both(T* values, Index n, Index low, Index high) {
  std::nth_element(values, values + high, values + n);
  const T upper = values[high];
  return {low == high ? upper : *std::max_element(values, values + high), upper};
}

// Looks out for values in a window that almost surely holds the wanted ranks. Counts them in bins
// where the window spans few numbers, which is exact, or where they are too many to keep, which is
// exact to a bin; keeps them otherwise.
template <class T>
class RankWindow {
 public:
  // The window is [low, high]; about `expected` values will be in it.
  RankWindow(T low, T high, Index expected);

  const Window<T>& window() const { return window_; }
  // Count values below the window, and those in it. Several threads may.
  void add(Index below, const std::vector<T>& inside);

  // What has been counted: how many values below the window, in its bins, or those kept, which are
  // given away. Counts of others can be added.
  Index below() const { return below_; }
  const std::vector<Index>& bins() const { return bins_; }
  std::vector<T> take_kept() { return std::exchange(kept_, {}); }
  void add_counts(Index below, const Index* bins) {
    below_ += below;
    for (Index& bin : bins_) bin += *bins++;
  }

  // The values at these ranks, from 0, among all that were counted; those next to the window's ends
  // for ranks outside it, none if nothing was in it.
  std::vector<T> values_at(const std::vector<Index>& ranks) const;

 private:
  using Key = std::make_unsigned_t<FloatBits<T>>;

  // From the window's low end, in numbers. Adding 0 makes one number of both zeros.
  Key distance(T value) const {
    return static_cast<Key>(to_bits(value + T(0))) - static_cast<Key>(to_bits(window_.low));
  }

  Window<T> window_;
  int shift_ = 0;  // a bin holds 2^shift numbers
  std::mutex adding_;
  Index below_ = 0;
  std::vector<Index> bins_;
  std::vector<T> kept_;
};

}  // namespace epruner
