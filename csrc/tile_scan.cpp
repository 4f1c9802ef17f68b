#include "tile_scan.hpp"

#include <cstring>

#include "compiler.hpp"

namespace epruner {
namespace {

constexpr Index kChunk = 512;  // columns whose marks are made at once
static_assert(kChunk % kSpareHits == 0);

// Hits are rare and no branch can foresee them: eight places without one are passed in one step, in
// others every place is written and counted only where it is marked.
EPRUNER_INLINE Index append_marked(Index n, Index first, const std::uint8_t* marks, Column* hits,
                                   Index found) {
  static_assert(kSpareHits == sizeof(std::uint64_t));
  for (Index k = 0; k < n; k += kSpareHits) {
    std::uint64_t together;
    std::memcpy(&together, marks + k, sizeof together);
    if (together == 0) continue;
    for (Index j = 0; j < kSpareHits; ++j) {
      hits[found] = static_cast<Column>(first + k + j);
      found += marks[k + j];
    }
  }
  return found;
}

// mark(first, count, marks) sets 1 where there is a hit, else 0, for columns from `first`.
template <class Mark>
EPRUNER_INLINE Index scan(Index n, Column* hits, const Mark& mark) {
  std::uint8_t marks[kChunk];
  Index found = 0;
  for (Index first = 0; first < n; first += kChunk) {
    const Index left = n - first, count = left < kChunk ? left : kChunk;
    if (count < kChunk) std::memset(marks + count / kSpareHits * kSpareHits, 0, kSpareHits);
    mark(first, count, marks);
    found = append_marked(count, first, marks, hits, found);
  }
  return found;
}

// Plain loops without a branch: the compiler makes vectors of them.

template <class T>
EPRUNER_INLINE Index scan_thresholds_impl(const TileRow<T>& row, T threshold,
                                          const T* thresholds_of_all, Column* hits) {
  const T scale = row.scale, norm = row.norm;
  return scan(row.n, hits, [&](Index first, Index count, std::uint8_t* __restrict marks) {
    const T* __restrict dots = row.dots + first, * __restrict norms = row.norms + first;
    const T* __restrict thresholds = thresholds_of_all + first;
    for (Index k = 0; k < count; ++k) {
      const T s = scale * dots[k] - (norm + norms[k]);
      marks[k] = static_cast<std::uint8_t>((s >= threshold) | (s >= thresholds[k]));
    }
  });
}

template <class T>
EPRUNER_INLINE Index scan_thresholds_impl(const TileRow<T>& row, T threshold,
                                          const T* thresholds_of_all, Window<T> window,
                                          Index& below, Column* hits) {
  const T scale = row.scale, norm = row.norm;
  return scan(row.n, hits, [&](Index first, Index count, std::uint8_t* __restrict marks) {
    const T* __restrict dots = row.dots + first, * __restrict norms = row.norms + first;
    const T* __restrict thresholds = thresholds_of_all + first;
    std::int32_t lower = 0;
    for (Index k = 0; k < count; ++k) {
      const T s = scale * dots[k] - (norm + norms[k]);
      lower += s < window.low;
      marks[k] = static_cast<std::uint8_t>((s >= threshold) | (s >= thresholds[k]) |
                                           ((s >= window.low) & (s < window.above)));
    }
    below += lower;
  });
}

template <class T>
EPRUNER_INLINE Index scan_thresholds_impl(const TileRow<T>& row, T threshold,
                                          const T* thresholds_of_all, Window<T> window,
                                          Index& below, const Windows<T>& windows, Column* hits) {
  const T scale = row.scale, norm = row.norm;
  return scan(row.n, hits, [&](Index first, Index count, std::uint8_t* __restrict marks) {
    const T* __restrict dots = row.dots + first, * __restrict norms = row.norms + first;
    const T* __restrict thresholds = thresholds_of_all + first;
    const T* __restrict lows = windows.low + first, * __restrict aboves = windows.above + first;
    std::int32_t* __restrict belows = windows.below + first;
    std::int32_t lower = 0;
    for (Index k = 0; k < count; ++k) {
      const T s = scale * dots[k] - (norm + norms[k]);
      lower += s < window.low;
      belows[k] += s < lows[k];
      marks[k] = static_cast<std::uint8_t>((s >= threshold) | (s >= thresholds[k]) |
                                           ((s >= window.low) & (s < window.above)) |
                                           ((s >= lows[k]) & (s < aboves[k])));
    }
    below += lower;
  });
}

}  // namespace

#define EPRUNER_SCANS(T)                                                                          \
  EPRUNER_CLONES Index scan_thresholds(const TileRow<T>& row, T threshold, const T* thresholds,   \
                                       Column* hits) {                                            \
    return scan_thresholds_impl(row, threshold, thresholds, hits);                                \
  }                                                                                               \
  EPRUNER_CLONES Index scan_thresholds(const TileRow<T>& row, T threshold, const T* thresholds,   \
                                       Window<T> window, Index& below, Column* hits) {            \
    return scan_thresholds_impl(row, threshold, thresholds, window, below, hits);                 \
  }                                                                                               \
  EPRUNER_CLONES Index scan_thresholds(const TileRow<T>& row, T threshold, const T* thresholds,   \
                                       Window<T> window, Index& below, const Windows<T>& windows, \
                                       Column* hits) {                                            \
    return scan_thresholds_impl(row, threshold, thresholds, window, below, windows, hits);        \
  }
EPRUNER_SCANS(float)
EPRUNER_SCANS(double)

}  // namespace epruner
