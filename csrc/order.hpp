// Order statistics of similarities, without sorting them.
#pragma once

#include <utility>

#include "messages.hpp"

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

}  // namespace epruner
