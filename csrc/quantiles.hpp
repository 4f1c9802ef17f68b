// Order statistics of similarities, without sorting them and without keeping those seen once.
#pragma once

#include <atomic>
#include <vector>

#include "float_bits.hpp"
#include "row_kernels.hpp"

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

// Looks out for values in a window that almost surely holds the wanted ranks. Counts them in bins
// where the window spans few numbers, which is exact, or where they are too many to keep, which is
// exact to a bin; keeps them otherwise.
template <class T>
class RankWindow {
 public:
  // The window is [low, high]; about `expected` values will be in it. Each of `writers` is one
  // thread at a time.
  RankWindow(T low, T high, Index expected, Index writers);

  // Count n more values; `scratch` has room for as many columns.
  void add(Index writer, Index n, const T* values, Column* scratch);

  // The values at these ranks, from 0, among all that were counted; those next to the window's ends
  // for ranks outside it, none if nothing was in it.
  std::vector<T> values_at(const std::vector<Index>& ranks) const;

 private:
  struct Tally {
    Index below = 0;
    std::vector<T> inside;
  };
  using Key = std::make_unsigned_t<FloatBits<T>>;

  Key distance(T value) const;  // from the window's low end, in numbers

  T low_, above_;  // the window is [low, above)
  int shift_ = 0;  // a bin holds 2^shift numbers
  std::vector<std::atomic<Index>> bins_;
  std::vector<Tally> tallies_;
};

}  // namespace epruner
