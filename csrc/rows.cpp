#include "rows.hpp"

#include <algorithm>
#include <cmath>

// One clone per instruction set, chosen when the library is loaded. Only serial functions carry the
// attribute: inside a function with an OpenMP region it would resolve twice.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define EPRUNER_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EPRUNER_CLONES
#endif
#define EPRUNER_INLINE inline __attribute__((always_inline))

namespace epruner {
namespace {

// The two-largest reduction vectorises only with one accumulator per lane.
template <class T>
struct Top2Lanes {
  static constexpr Index width = 64 / sizeof(T);
  T first[width], second[width];

  EPRUNER_INLINE Top2Lanes() {
    for (Index j = 0; j < width; ++j) first[j] = second[j] = minus_infinity<T>;
  }
  EPRUNER_INLINE void add(Index j, T x) {
    const T low = x < first[j] ? x : first[j];
    second[j] = second[j] > low ? second[j] : low;
    first[j] = x > first[j] ? x : first[j];
  }
  EPRUNER_INLINE Top2<T> fold() const {
    Top2<T> top;
    for (Index j = 0; j < width; ++j) {
      top.add(first[j]);
      top.add(second[j]);
    }
    return top;
  }
};

template <class T>
EPRUNER_INLINE T damped_availability(T keep, T b, T r, T a) {
  const T positive = r > T(0) ? r : T(0);
  const T fresh = b - positive;
  return keep * a + (T(1) - keep) * (fresh < T(0) ? fresh : T(0));
}

template <class T>
EPRUNER_INLINE T damped_responsibility(T keep, Top2<T> top, T s, T a, T r) {
  const T rival = a + s == top.first ? top.second : top.first;
  return keep * r + (T(1) - keep) * (s - rival);
}

template <class T>
EPRUNER_INLINE Top2<T> dense_availabilities_impl(Index n, T keep, const T* __restrict b,
                                                 const T* __restrict s, const T* __restrict r,
                                                 T* __restrict a) {
  Top2Lanes<T> lanes;
  constexpr Index w = Top2Lanes<T>::width;
  Index k = 0;
  for (; k + w <= n; k += w)
    for (Index j = 0; j < w; ++j) {
      a[k + j] = damped_availability(keep, b[k + j], r[k + j], a[k + j]);
      lanes.add(j, a[k + j] + s[k + j]);
    }
  Top2<T> top = lanes.fold();
  for (; k < n; ++k) {
    a[k] = damped_availability(keep, b[k], r[k], a[k]);
    top.add(a[k] + s[k]);
  }
  return top;
}

template <class T>
EPRUNER_INLINE void dense_responsibilities_impl(Index n, T keep, Top2<T> top,
                                                const T* __restrict s, const T* __restrict a,
                                                T* __restrict r, double* __restrict support) {
  for (Index k = 0; k < n; ++k) {
    const T fresh = damped_responsibility(keep, top, s[k], a[k], r[k]);
    r[k] = fresh;
    support[k] += static_cast<double>(fresh > T(0) ? fresh : T(0));
  }
}

template <class T>
EPRUNER_INLINE void lane_maxima_impl(Index n, const T* __restrict x, T below,
                                     T* __restrict lanes) {
  Index k = 0;
  for (; k + kLanes <= n; k += kLanes)
    for (Index j = 0; j < kLanes; ++j) {
      const T v = x[k + j] < below ? x[k + j] : minus_infinity<T>;
      lanes[j] = v > lanes[j] ? v : lanes[j];
    }
  for (; k < n; ++k) {
    T& lane = lanes[k % kLanes];
    if (x[k] < below && x[k] > lane) lane = x[k];
  }
}

template <class T>
EPRUNER_INLINE Index collect_between_impl(Index n, const T* __restrict x, T low, T below,
                                          Column* __restrict out) {
  constexpr Index w = 32;  // hits are rare: test a group at once, look closer only where one is
  Index found = 0;
  Index k = 0;
  for (; k + w <= n; k += w) {
    int any = 0;
    for (Index j = 0; j < w; ++j) any |= (x[k + j] >= low) & (x[k + j] < below);
    if (any)
      for (Index j = 0; j < w; ++j)
        if (x[k + j] >= low && x[k + j] < below) out[found++] = static_cast<Column>(k + j);
  }
  for (; k < n; ++k)
    if (x[k] >= low && x[k] < below) out[found++] = static_cast<Column>(k);
  return found;
}

template <class T>
EPRUNER_INLINE bool has_invalid_impl(Index n, const T* __restrict x) {
  int bad = 0;
  for (Index k = 0; k < n; ++k) bad |= !(x[k] <= std::numeric_limits<T>::max());
  return bad != 0;
}

EPRUNER_INLINE std::uint64_t mix(std::uint64_t h) {
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ull;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBull;
  return h ^ (h >> 31);
}

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ull;

}  // namespace

EPRUNER_CLONES Top2<float> dense_availabilities(Index n, float keep, const float* b,
                                                const float* s, const float* r, float* a) {
  return dense_availabilities_impl(n, keep, b, s, r, a);
}
EPRUNER_CLONES Top2<double> dense_availabilities(Index n, double keep, const double* b,
                                                 const double* s, const double* r, double* a) {
  return dense_availabilities_impl(n, keep, b, s, r, a);
}

EPRUNER_CLONES void dense_responsibilities(Index n, float keep, Top2<float> top, const float* s,
                                           const float* a, float* r, double* support) {
  dense_responsibilities_impl(n, keep, top, s, a, r, support);
}
EPRUNER_CLONES void dense_responsibilities(Index n, double keep, Top2<double> top, const double* s,
                                           const double* a, double* r, double* support) {
  dense_responsibilities_impl(n, keep, top, s, a, r, support);
}

EPRUNER_CLONES Top2<double> listed_availabilities(Index n, double keep, const double* b,
                                                  const Column* column, const double* s,
                                                  const double* r, double* a) {
  Top2Lanes<double> lanes;
  constexpr Index w = Top2Lanes<double>::width;
  Index e = 0;
  for (; e + w <= n; e += w)
    for (Index j = 0; j < w; ++j) {
      a[e + j] = damped_availability(keep, b[column[e + j]], r[e + j], a[e + j]);
      lanes.add(j, a[e + j] + s[e + j]);
    }
  Top2<double> top = lanes.fold();
  for (; e < n; ++e) {
    a[e] = damped_availability(keep, b[column[e]], r[e], a[e]);
    top.add(a[e] + s[e]);
  }
  return top;
}

EPRUNER_CLONES Top2<double> listed_top2(Index n, const double* s, const double* a) {
  Top2<double> top;
  for (Index e = 0; e < n; ++e) top.add(a[e] + s[e]);
  return top;
}

EPRUNER_CLONES void listed_responsibilities(Index n, double keep, Top2<double> top,
                                            const double* __restrict s,
                                            const double* __restrict a, double* __restrict r) {
  for (Index e = 0; e < n; ++e) r[e] = damped_responsibility(keep, top, s[e], a[e], r[e]);
}

EPRUNER_CLONES void lane_maxima(Index n, const float* x, float below, float* lanes) {
  lane_maxima_impl(n, x, below, lanes);
}
EPRUNER_CLONES void lane_maxima(Index n, const double* x, double below, double* lanes) {
  lane_maxima_impl(n, x, below, lanes);
}

EPRUNER_CLONES Index collect_between(Index n, const float* x, float low, float below,
                                     Column* out) {
  return collect_between_impl(n, x, low, below, out);
}
EPRUNER_CLONES Index collect_between(Index n, const double* x, double low, double below,
                                     Column* out) {
  return collect_between_impl(n, x, low, below, out);
}

EPRUNER_CLONES bool has_invalid(Index n, const float* x) { return has_invalid_impl(n, x); }
EPRUNER_CLONES bool has_invalid(Index n, const double* x) { return has_invalid_impl(n, x); }

Jitter::Jitter(std::uint64_t seed, bool single_precision)
    : seed_(seed),
      relative_(single_precision ? 0x1p-23 : 0x1p-36),
      absolute_(single_precision ? 0x1p-120 : 0x1p-1000) {}

double Jitter::operator()(double s, Index row, Index column) const {
  if (std::isinf(s)) return s;
  const std::uint64_t key = mix((static_cast<std::uint64_t>(row) + seed_) * kGolden + kGolden);
  const std::uint64_t h = mix(key + static_cast<std::uint64_t>(column) * kGolden);
  const double u = static_cast<double>(h >> 11) * 0x1p-52 - 1.0;
  return s + (relative_ * std::fabs(s) + absolute_) * u;
}

double Jitter::ceiling(double s) const {
  return std::isinf(s) ? s : s + (relative_ * std::fabs(s) + absolute_);
}

}  // namespace epruner
