// One pass over a row of a tile of inner products: which of its pairs are of interest.
#pragma once

#include "row_kernels.hpp"

namespace epruner {

// Similarities scale * dots[k] - (norm + norms[k]) of one point with n others.
template <class T>
struct TileRow {
  Index n;
  const T* dots;
  const T* norms;
  T scale, norm;

  T similarity(Index k) const { return scale * dots[k] - (norm + norms[k]); }
};

// The values in [low, above).
template <class T>
struct Window {
  T low = minus_infinity<T>, above = std::numeric_limits<T>::infinity();

  bool holds(T value) const { return (value >= low) & (value < above); }
};

// Windows of n points, and how many values lay below each.
template <class T>
struct Windows {
  const T *low, *above;
  std::int32_t* below;
};

// All of them write the positions of interest to `hits` in ascending order, which has room for
// kSpareHits more than n, and return how many these are.
constexpr Index kSpareHits = 8;

// Similarities that reach the row's threshold or their column's.
Index scan_thresholds(const TileRow<float>& row, float threshold, const float* thresholds,
                      Column* hits);
Index scan_thresholds(const TileRow<double>& row, double threshold, const double* thresholds,
                      Column* hits);

// These, and those in the window; `below` grows by how many lie below it.
Index scan_thresholds(const TileRow<float>& row, float threshold, const float* thresholds,
                      Window<float> window, Index& below, Column* hits);
Index scan_thresholds(const TileRow<double>& row, double threshold, const double* thresholds,
                      Window<double> window, Index& below, Column* hits);

// These, and those in their column's window.
Index scan_thresholds(const TileRow<float>& row, float threshold, const float* thresholds,
                      Window<float> window, Index& below, const Windows<float>& windows,
                      Column* hits);
Index scan_thresholds(const TileRow<double>& row, double threshold, const double* thresholds,
                      Window<double> window, Index& below, const Windows<double>& windows,
                      Column* hits);

}  // namespace epruner
