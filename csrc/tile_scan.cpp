#include "tile_scan.hpp"

#include <bit>

#include "simd.hpp"

namespace epruner {
namespace {

template <class T>
using Values = typename Vector<T>::type;
template <class T>
using Mask = typename Vector<T>::mask;

// Which of the columns from k on, similarities s, interest: those that reach a threshold, ...
template <class T>
struct Thresholds {
  T row;
  const T* columns;

  EPRUNER_INLINE Mask<T> operator()(Index k, Values<T> s) {
    return (s >= Vector<T>::fill(row)) | (s >= Vector<T>::load(columns + k));
  }
};

// ... those in the row's window, below which it counts, ...
template <class T>
struct RowWindow {
  Window<T> window;
  Mask<T> minus_below{};

  EPRUNER_INLINE Mask<T> operator()(Index, Values<T> s) {
    const Values<T> low = Vector<T>::fill(window.low);
    minus_below += s < low;
    return (s >= low) & (s < Vector<T>::fill(window.above));
  }
  EPRUNER_INLINE Index below() const {
    Index sum = 0;
    for (Index j = 0; j < Vector<T>::width; ++j) sum -= minus_below[j];
    return sum;
  }
};

// ... and those in their column's.
template <class T>
struct ColumnWindows {
  Windows<T> windows;

  EPRUNER_INLINE Mask<T> operator()(Index k, Values<T> s) {
    const Values<T> low = Vector<T>::load(windows.low + k);
    Mask<T> below;
    std::memcpy(&below, windows.below + k, sizeof below);
    below -= s < low;
    std::memcpy(windows.below + k, &below, sizeof below);
    return (s >= low) & (s < Vector<T>::load(windows.above + k));
  }
};

// Lane j has bit first + j.
template <class T>
EPRUNER_INLINE Mask<T> lane_bits(Index first) {
  Mask<T> bits{};
  for (Index j = 0; j < Vector<T>::width; ++j) bits[j] = Count<T>{1} << (first + j);
  return bits;
}

// Similarities of the vector of columns from k on, and which of them interest. Inlined by force: a
// function of its own would be compiled for the narrowest vectors.
template <class T, class... Interests>
EPRUNER_INLINE Mask<T> marks(const TileRow<T>& row, Index k, T* similarities,
                             Interests&... interests) {
  using V = Vector<T>;
  const Values<T> s =
      V::fill(row.scale) * V::load(row.dots + k) - (V::fill(row.norm) + V::load(row.norms + k));
  V::store(similarities, s);
  return (interests(k, s) | ...);
}

// Hits are rare: columns without one are passed together.
template <class T, class... Interests>
EPRUNER_INLINE void scan_impl(const TileRow<T>& row, Hits<T>& hits, Interests&... interests) {
  using V = Vector<T>;
  constexpr Index w = V::width, together = 4 * w;
  static_assert(kSpare % together == 0);
  Mask<T> bits[together / w];
  for (int v = 0; v < together / w; ++v) bits[v] = lane_bits<T>(v * w);
  Column* columns = hits.columns;
  T* similarities = hits.similarities;
  Index found = 0;
  for (Index first = 0; first < row.n; first += together) {
    T all[together];
    Mask<T> marked{};
    for (Index v = 0; v < together / w; ++v)
      marked |= marks(row, first + v * w, all + v * w, interests...) & bits[v];
    for (std::uint32_t left = V::united(marked); left != 0; left &= left - 1) {
      const int j = std::countr_zero(left);
      columns[found] = static_cast<Column>(first + j);
      similarities[found++] = all[j];
    }
  }
  hits.size = found;
}

}  // namespace

#define EPRUNER_SCANS(T)                                                              \
  EPRUNER_CLONES void scan(const TileRow<T>& row, T threshold, const T* thresholds,   \
                           Hits<T>& hits) {                                           \
    Thresholds<T> either{threshold, thresholds};                                      \
    scan_impl(row, hits, either);                                                     \
  }                                                                                   \
  EPRUNER_CLONES void scan(const TileRow<T>& row, T threshold, const T* thresholds,   \
                           Window<T> window, Index& below, Hits<T>& hits) {           \
    Thresholds<T> either{threshold, thresholds};                                      \
    RowWindow<T> own{window};                                                         \
    scan_impl(row, hits, either, own);                                                \
    below += own.below();                                                             \
  }                                                                                   \
  EPRUNER_CLONES void scan(const TileRow<T>& row, T threshold, const T* thresholds,   \
                           Window<T> window, Index& below, const Windows<T>& windows, \
                           Hits<T>& hits) {                                           \
    Thresholds<T> either{threshold, thresholds};                                      \
    RowWindow<T> own{window};                                                         \
    ColumnWindows<T> others{windows};                                                 \
    scan_impl(row, hits, either, own, others);                                        \
    below += own.below();                                                             \
  }
EPRUNER_SCANS(float)
EPRUNER_SCANS(double)

}  // namespace epruner
