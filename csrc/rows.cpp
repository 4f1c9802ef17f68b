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

// GCC's and Clang's vector type, lowered where the machine's vectors are narrower.
template <class T>
struct Vector {
  static constexpr Index width = 32 / sizeof(T);
  typedef T type __attribute__((vector_size(32)));
  typedef std::int64_t bits __attribute__((vector_size(32)));

  static EPRUNER_INLINE type load(const T* x) {
    type v;
    __builtin_memcpy(&v, x, sizeof v);
    return v;
  }
  static EPRUNER_INLINE void store(T* x, type v) { __builtin_memcpy(x, &v, sizeof v); }
  static EPRUNER_INLINE type fill(T x) { return type{} + x; }
};

// The two-largest reduction vectorises only with one accumulator per lane.
template <class T>
struct Top2Lanes {
  using V = Vector<T>;
  typename V::type first = V::fill(minus_infinity<T>), second = first;

  EPRUNER_INLINE void add(typename V::type x) {
    const typename V::type low = x < first ? x : first;
    second = second > low ? second : low;
    first = x > first ? x : first;
  }
  EPRUNER_INLINE Top2<T> fold() const {
    Top2<T> top;
    for (Index j = 0; j < V::width; ++j) {
      top.add(first[j]);
      top.add(second[j]);
    }
    return top;
  }
};

// V is a number or a vector of them.
template <class V>
EPRUNER_INLINE V damped_availability(V keep, V renew, V b, V r, V a) {
  const V zero{};
  const V fresh = b - (r > zero ? r : zero);
  return keep * a + renew * (fresh < zero ? fresh : zero);
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
  using V = Vector<T>;
  constexpr Index w = V::width;
  const typename V::type keeps = V::fill(keep), renews = V::fill(T(1) - keep);
  Top2Lanes<T> even, odd;  // two chains: the reduction waits on its own latency otherwise
  Index k = 0;
  for (; k + 2 * w <= n; k += 2 * w) {
    const auto a0 = damped_availability(keeps, renews, V::load(b + k), V::load(r + k), V::load(a + k));
    const auto a1 = damped_availability(keeps, renews, V::load(b + k + w), V::load(r + k + w),
                                        V::load(a + k + w));
    V::store(a + k, a0);
    V::store(a + k + w, a1);
    even.add(a0 + V::load(s + k));
    odd.add(a1 + V::load(s + k + w));
  }
  Top2<T> top = even.fold();
  top.add(odd.fold());
  for (; k < n; ++k) {
    a[k] = damped_availability(keep, T(1) - keep, b[k], r[k], a[k]);
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
EPRUNER_INLINE Index count_between_impl(Index n, const T* __restrict x, T low, T below) {
  std::int32_t count = 0;
  for (Index k = 0; k < n; ++k) count += (x[k] >= low) & (x[k] < below);
  return count;
}

template <class T>
EPRUNER_INLINE Index collect_between_impl(Index n, const T* __restrict x, T low, T below,
                                          Column* __restrict out) {
  using V = Vector<T>;
  constexpr Index w = V::width;
  const typename V::type lows = V::fill(low), belows = V::fill(below);
  Index found = 0;
  Index k = 0;
  for (; k + 2 * w <= n; k += 2 * w) {  // hits are rare: look closer only where a group has one
    const auto x0 = V::load(x + k), x1 = V::load(x + k + w);
    const auto hit0 = (x0 >= lows) & (x0 < belows), hit1 = (x1 >= lows) & (x1 < belows);
    const auto any = (typename V::bits)(hit0 | hit1);
    if ((any[0] | any[1] | any[2] | any[3]) == 0) continue;
    for (Index j = 0; j < w; ++j)
      if (hit0[j]) out[found++] = static_cast<Column>(k + j);
    for (Index j = 0; j < w; ++j)
      if (hit1[j]) out[found++] = static_cast<Column>(k + w + j);
  }
  for (; k < n; ++k)
    if (x[k] >= low && x[k] < below) out[found++] = static_cast<Column>(k);
  return found;
}

template <class T>
EPRUNER_INLINE Index collect_at_least_impl(Index n, const T* __restrict x,
                                           const T* __restrict low, Column* __restrict out) {
  using V = Vector<T>;
  constexpr Index w = V::width;
  Index found = 0;
  Index k = 0;
  for (; k + w <= n; k += w) {
    const auto hit = V::load(x + k) >= V::load(low + k);
    const auto any = (typename V::bits)(hit);
    if ((any[0] | any[1] | any[2] | any[3]) == 0) continue;
    for (Index j = 0; j < w; ++j)
      if (hit[j]) out[found++] = static_cast<Column>(k + j);
  }
  for (; k < n; ++k)
    if (x[k] >= low[k]) out[found++] = static_cast<Column>(k);
  return found;
}

template <class T>
EPRUNER_INLINE void similarities_from_dots_impl(Index n, const T* __restrict dots, T norm,
                                                const T* __restrict norms, T* __restrict s) {
  for (Index k = 0; k < n; ++k) s[k] = T(2) * dots[k] - (norm + norms[k]);
}

template <class T>
EPRUNER_INLINE bool has_invalid_impl(Index n, const T* __restrict x) {
  int bad = 0;
  for (Index k = 0; k < n; ++k) bad |= !(x[k] <= std::numeric_limits<T>::max());
  return bad != 0;
}

template <class T>
EPRUNER_INLINE double squared_distance_impl(Index d, const T* x, const T* y) {
  using V = Vector<double>;
  constexpr Index w = V::width;
  V::type lanes{};
  Index c = 0;
  for (; c + w <= d; c += w) {
    V::type difference;
    for (Index j = 0; j < w; ++j)
      difference[j] = static_cast<double>(x[c + j]) - static_cast<double>(y[c + j]);
    lanes += difference * difference;
  }
  double sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  for (; c < d; ++c) {
    const double difference = static_cast<double>(x[c]) - static_cast<double>(y[c]);
    sum += difference * difference;
  }
  return sum;
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
                                                  Quad* quads) {
  using V = Vector<double>;
  const V::type keeps = V::fill(keep), renews = V::fill(1 - keep);
  Top2Lanes<double> lanes;
  for (Quad* q = quads; q != quads + n; ++q) {
    const V::type total = {b[q->column[0]], b[q->column[1]], b[q->column[2]], b[q->column[3]]};
    const V::type a = damped_availability(keeps, renews, total, V::load(q->r), V::load(q->a));
    V::store(q->a, a);
    lanes.add(a + V::load(q->s));
  }
  return lanes.fold();
}

EPRUNER_CLONES Top2<double> listed_top2(Index n, const Quad* quads) {
  using V = Vector<double>;
  Top2Lanes<double> lanes;
  for (const Quad* q = quads; q != quads + n; ++q) lanes.add(V::load(q->a) + V::load(q->s));
  return lanes.fold();
}

EPRUNER_CLONES Index listed_responsibilities(Index n, double keep, Top2<double> top, Quad* quads,
                                             Column* column, double* positive) {
  using V = Vector<double>;
  const V::type keeps = V::fill(keep), renews = V::fill(1 - keep), zero{};
  const V::type firsts = V::fill(top.first), seconds = V::fill(top.second);
  Index found = 0;
  for (Quad* q = quads; q != quads + n; ++q) {
    const V::type s = V::load(q->s);
    const V::type rival = V::load(q->a) + s == firsts ? seconds : firsts;
    const V::type r = keeps * V::load(q->r) + renews * (s - rival);
    V::store(q->r, r);
    const auto hit = (V::bits)(r > zero);
    if ((hit[0] | hit[1] | hit[2] | hit[3]) == 0) continue;
    for (Index j = 0; j < Quad::width; ++j) {
      column[found] = q->column[j];
      positive[found] = r[j];
      found -= hit[j];  // -1 where R > 0
    }
  }
  return found;
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

EPRUNER_CLONES Index count_between(Index n, const float* x, float low, float below) {
  return count_between_impl(n, x, low, below);
}
EPRUNER_CLONES Index count_between(Index n, const double* x, double low, double below) {
  return count_between_impl(n, x, low, below);
}

EPRUNER_CLONES Index collect_at_least(Index n, const float* x, const float* low, Column* out) {
  return collect_at_least_impl(n, x, low, out);
}
EPRUNER_CLONES Index collect_at_least(Index n, const double* x, const double* low, Column* out) {
  return collect_at_least_impl(n, x, low, out);
}

EPRUNER_CLONES void similarities_from_dots(Index n, const float* dots, float norm,
                                           const float* norms, float* s) {
  similarities_from_dots_impl(n, dots, norm, norms, s);
}
EPRUNER_CLONES void similarities_from_dots(Index n, const double* dots, double norm,
                                           const double* norms, double* s) {
  similarities_from_dots_impl(n, dots, norm, norms, s);
}

EPRUNER_CLONES bool has_invalid(Index n, const float* x) { return has_invalid_impl(n, x); }
EPRUNER_CLONES bool has_invalid(Index n, const double* x) { return has_invalid_impl(n, x); }

EPRUNER_CLONES double squared_distance(Index d, const float* x, const float* y) {
  return squared_distance_impl(d, x, y);
}
EPRUNER_CLONES double squared_distance(Index d, const double* x, const double* y) {
  return squared_distance_impl(d, x, y);
}

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
