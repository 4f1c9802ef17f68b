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

// The whole number as wide as T.
template <class T>
using Count = std::conditional_t<sizeof(T) == sizeof(std::int32_t), std::int32_t, std::int64_t>;

// Windows of n points, and how many values lay below each.
template <class T>
struct Windows {
  const T *low, *above;
  Count<T>* below;
};

// The pairs of interest: columns in ascending order, and similarities.
template <class T>
struct Hits {
  Index size = 0;
  Column* columns;
  T* similarities;
};

// All of them write what is of interest to `hits`. They look at whole vectors: every array has
// kSpare places more than the row's n, which only need to exist, but for norms, which are NaN
// there.
constexpr Index kSpare = 32;

// Similarities that reach the row's threshold or their column's.
void scan(const TileRow<float>& row, float threshold, const float* thresholds, Hits<float>& hits);
void scan(const TileRow<double>& row, double threshold, const double* thresholds,
          Hits<double>& hits);

// These, and those in the window; `below` grows by how many lie below it.
void scan(const TileRow<float>& row, float threshold, const float* thresholds, Window<float> window,
          Index& below, Hits<float>& hits);
void scan(const TileRow<double>& row, double threshold, const double* thresholds,
          Window<double> window, Index& below, Hits<double>& hits);

// These, and those in their column's window.
void scan(const TileRow<float>& row, float threshold, const float* thresholds, Window<float> window,
          Index& below, const Windows<float>& windows, Hits<float>& hits);
void scan(const TileRow<double>& row, double threshold, const double* thresholds,
          Window<double> window, Index& below, const Windows<double>& windows, Hits<double>& hits);

}  // namespace epruner
