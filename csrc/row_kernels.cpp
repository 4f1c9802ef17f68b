#include "row_kernels.hpp"

#include <algorithm>
#include <cmath>

#include "float_bits.hpp"
#include "simd.hpp"

// One clone per instruction set, chosen when the library is loaded. Only serial functions carry the
// attribute: inside a function with an OpenMP region it would resolve twice. ThreadSanitizer does
// not run yet when they are chosen.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define EPRUNER_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EPRUNER_CLONES
#endif

namespace epruner {
namespace {

// The two-largest reduction vectorises only with one accumulator per lane.
template <class T>
struct Top2Lanes {
  using V = Vector<T>;
  typename V::type first = V::fill(minus_infinity<T>), second = first;

  EPRUNER_INLINE void add(typename V::type x) {
    const typename V::type low = select(x < first, x, first);
    second = select(second > low, second, low);
    first = select(x > first, x, first);
  }
  EPRUNER_INLINE void add(const Top2Lanes& other) {
    second = select(second > other.second, second, other.second);
    add(other.first);
  }
  EPRUNER_INLINE Top2<T> fold() const {
    Top2Lanes all = *this;
    if constexpr (V::width == 8) all.add_swapped<4>();
    all.add_swapped<2>();
    all.add_swapped<1>();
    return {all.first[0], all.second[0]};
  }

 private:
  template <Index distance>
  EPRUNER_INLINE void add_swapped() {
    Top2Lanes other;
    other.first = V::template swapped<distance>(first);
    other.second = V::template swapped<distance>(second);
    add(other);
  }
};

// V is a number or a vector of them.
template <class V>
EPRUNER_INLINE V damped_availability(V damping, V renew, V b, V r, V a) {
  const V zero{};
  const V fresh = b - select(r > zero, r, zero);
  return damping * a + renew * select(fresh < zero, fresh, zero);
}

template <class T>
EPRUNER_INLINE T damped_responsibility(T damping, Top2<T> top, T s, T a, T r) {
  const T rival = a + s == top.first ? top.second : top.first;
  return damping * r + (T(1) - damping) * (s - rival);
}

EPRUNER_INLINE Vector<double>::type gathered(const double* x, const Column* k) {
  const Vector<double>::type v = {x[k[0]], x[k[1]], x[k[2]], x[k[3]]};
  return v;
}

template <class T>
EPRUNER_INLINE Top2<T> dense_availabilities_impl(Index n, T damping, const T* __restrict b,
                                                 const T* __restrict s, const T* __restrict r,
                                                 T* __restrict a) {
  using V = Vector<T>;
  constexpr Index w = V::width;
  const typename V::type dampings = V::fill(damping), renews = V::fill(T(1) - damping);
  Top2Lanes<T> even, odd;  // two chains: the reduction waits on its own latency otherwise
  Index k = 0;
  for (; k + 2 * w <= n; k += 2 * w) {
    const auto a0 =
        damped_availability(dampings, renews, V::load(b + k), V::load(r + k), V::load(a + k));
    const auto a1 = damped_availability(dampings, renews, V::load(b + k + w), V::load(r + k + w),
                                        V::load(a + k + w));
    V::store(a + k, a0);
    V::store(a + k + w, a1);
    even.add(a0 + V::load(s + k));
    odd.add(a1 + V::load(s + k + w));
  }
  even.add(odd);
  Top2<T> top = even.fold();
  for (; k < n; ++k) {
    a[k] = damped_availability(damping, T(1) - damping, b[k], r[k], a[k]);
    top.add(a[k] + s[k]);
  }
  return top;
}

template <class T>
EPRUNER_INLINE void dense_responsibilities_impl(Index n, T damping, Top2<T> top,
                                                const T* __restrict s, const T* __restrict a,
                                                T* __restrict r, double* __restrict support) {
  for (Index k = 0; k < n; ++k) {
    const T fresh = damped_responsibility(damping, top, s[k], a[k], r[k]);
    r[k] = fresh;
    support[k] += static_cast<double>(fresh > T(0) ? fresh : T(0));
  }
}

template <class T>
EPRUNER_INLINE Span<T> lane_maxima_impl(Index n, Index self, const T* x, T below, T* lanes) {
  using V = Vector<T>;
  constexpr Index w = V::width, vectors = kLanes<T> / w;
  const typename V::type belows = V::fill(below), none = V::fill(minus_infinity<T>);
  const typename V::type greatest = V::fill(std::numeric_limits<T>::max());
  typename V::type top[vectors];
  for (Index j = 0; j < vectors; ++j) top[j] = none;
  typename V::mask valid = greatest <= greatest;
  // The blocks with the own entry and at the end are read from a copy in which nothing else counts.
  const Index own = self < 0 ? -1 : self / kLanes<T> * kLanes<T>, whole = n / kLanes<T> * kLanes<T>;
  T copy[kLanes<T>];
  for (Index k = 0; k < n; k += kLanes<T>) {
    const T* block = x + k;
    if (k == own || k == whole) {
      std::fill_n(copy, kLanes<T>, minus_infinity<T>);
      std::copy_n(block, std::min(kLanes<T>, n - k), copy);
      if (k == own) copy[self - k] = minus_infinity<T>;
      block = copy;
    }
    for (Index j = 0; j < vectors; ++j) {
      const typename V::type v = V::load(block + j * w);
      valid &= v <= greatest;
      const typename V::type below_it = select(v < belows, v, none);
      top[j] = select(below_it > top[j], below_it, top[j]);
    }
  }
  typename V::type most = top[0], least = top[0];
  for (Index j = 0; j < vectors; ++j) {
    V::store(lanes + j * w, top[j]);
    most = select(top[j] > most, top[j], most);
    least = select(top[j] < least, top[j], least);
  }
  Span<T> span{least[0], most[0], true};
  for (Index j = 0; j < w; ++j) {
    span.least = std::min(span.least, least[j]);
    span.most = std::max(span.most, most[j]);
    span.valid &= valid[j] != 0;
  }
  return span;
}

template <class T>
EPRUNER_INLINE Index count_between_impl(Index n, const T* __restrict x, T low, T below) {
  std::int32_t count = 0;
  for (Index k = 0; k < n; ++k) count += (x[k] >= low) & (x[k] < below);
  return count;
}

// Halves the interval of numbers, not of their values.
template <class T>
EPRUNER_INLINE T bisect_impl(Index n, const T* x, T least, T most, T below, Index want) {
  const Index enough = want + want / 2 + 1;
  FloatBits<T> low = to_bits(least), high = to_bits(most);
  while (true) {
    const FloatBits<T> middle = (low & high) + ((low ^ high) >> 1);  // their mean, without overflow
    if (middle <= low) break;
    const Index count = count_between_impl(n, x, from_bits<T>(middle), below);
    if (count < want) {
      high = middle;
    } else {
      low = middle;
      if (count <= enough) break;
    }
  }
  return from_bits<T>(low);
}

// Write k + j to `out` for every lane j that hit. Hits are rare, and where they are no branch can
// foresee.
template <class Mask>
EPRUNER_INLINE Index append_hits(Index k, Mask hit, Index width, Column* out, Index found) {
  for (Index j = 0; j < width; ++j) {
    out[found] = static_cast<Column>(k + j);
    found -= hit[j];  // -1 where hit
  }
  return found;
}

template <class T>
EPRUNER_INLINE Index collect_between_impl(Index n, const T* __restrict x, T low, T below,
                                          Column* __restrict out) {
  using V = Vector<T>;
  constexpr Index w = V::width;
  const typename V::type lows = V::fill(low), belows = V::fill(below);
  Index found = 0;
  Index k = 0;
  for (; k + 2 * w <= n; k += 2 * w) {  // look closer only where a group has a hit
    const auto x0 = V::load(x + k), x1 = V::load(x + k + w);
    const auto hit0 = (x0 >= lows) & (x0 < belows), hit1 = (x1 >= lows) & (x1 < belows);
    if (!V::any(hit0 | hit1)) continue;
    found = append_hits(k, hit0, w, out, found);
    found = append_hits(k + w, hit1, w, out, found);
  }
  for (; k < n; ++k)
    if (x[k] >= low && x[k] < below) out[found++] = static_cast<Column>(k);
  return found;
}

template <class T>
EPRUNER_INLINE Index collect_at_least_impl(Index n, const T* __restrict x, const T* __restrict low,
                                           Column* __restrict out) {
  using V = Vector<T>;
  constexpr Index w = V::width;
  Index found = 0;
  Index k = 0;
  for (; k + w <= n; k += w) {
    const auto hit = V::load(x + k) >= V::load(low + k);
    if (V::any(hit)) found = append_hits(k, hit, w, out, found);
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

template <bool update>
EPRUNER_INLINE RowTop candidate_top_impl(const IterationTerms& terms, ClosedForm r, double self,
                                         CandidateRow& row) {
  using V = Vector<double>;
  constexpr Index w = V::width;
  const V::type damping = V::fill(terms.damping), renew = V::fill(1 - terms.damping);
  const V::type grown = V::fill(r.grown), mu = V::fill(r.mu);
  Top2Lanes<double> even, odd;
  const ActiveBlock* last_active = row.active + row.n_active_blocks();
  for (ActiveBlock* p = row.active; p != last_active; ++p) {
    V::type a = V::load(p->a);
    if constexpr (update) {
      a = damped_availability(damping, renew, gathered(terms.total, p->column), V::load(p->r), a);
      V::store(p->a, a);
    }
    even.add(a + V::load(p->s));
  }
  CandidateBlock* o = row.inactive;
  for (const CandidateBlock* end = o + row.n_stored_blocks; o != end; ++o) {
    const V::type s0 = V::load(o->s), s1 = V::load(o->s + w);
    V::type a0 = V::load(o->a), a1 = V::load(o->a + w);
    if constexpr (update) {
      a0 = damped_availability(damping, renew, gathered(terms.total, o->column), grown * s0 - mu,
                               a0);
      a1 = damped_availability(damping, renew, gathered(terms.total, o->column + w),
                               grown * s1 - mu, a1);
      V::store(o->a, a0);
      V::store(o->a + w, a1);
    }
    even.add(a0 + s0);
    odd.add(a1 + s1);
  }
  even.add(odd);
  Top2<double> top = even.fold();
  top.add(self);
  if (o->s[0] + terms.most > top.second) {
    even = odd = {};
    const CandidateBlock* end = row.inactive + row.n_inactive / CandidateBlock::width + 1;
    for (; o != end && o->s[0] + terms.most > top.second; ++o) {
      even.add(gathered(terms.availability, o->column) + V::load(o->s));
      odd.add(gathered(terms.availability, o->column + w) + V::load(o->s + w));
    }
    even.add(odd);
    top.add(even.fold());
  }
  V::mask hits{};
  for (const ActiveBlock* p = row.active; p != last_active; ++p)
    hits |= V::load(p->a) + V::load(p->s) == V::fill(top.first);
  return {top, self == top.first || V::any(hits)};
}

EPRUNER_INLINE std::uint64_t mix(std::uint64_t h) {
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ull;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBull;
  return h ^ (h >> 31);
}

EPRUNER_INLINE std::uint32_t mix_32(std::uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ull;
constexpr std::uint32_t kGolden32 = 0x9E3779B9u;

}  // namespace

EPRUNER_CLONES Top2<float> dense_availabilities(Index n, float damping, const float* b,
                                                const float* s, const float* r, float* a) {
  return dense_availabilities_impl(n, damping, b, s, r, a);
}
EPRUNER_CLONES Top2<double> dense_availabilities(Index n, double damping, const double* b,
                                                 const double* s, const double* r, double* a) {
  return dense_availabilities_impl(n, damping, b, s, r, a);
}

EPRUNER_CLONES void dense_responsibilities(Index n, float damping, Top2<float> top, const float* s,
                                           const float* a, float* r, double* support) {
  dense_responsibilities_impl(n, damping, top, s, a, r, support);
}
EPRUNER_CLONES void dense_responsibilities(Index n, double damping, Top2<double> top,
                                           const double* s, const double* a, double* r,
                                           double* support) {
  dense_responsibilities_impl(n, damping, top, s, a, r, support);
}

EPRUNER_CLONES RowTop candidate_availabilities(const IterationTerms& terms, ClosedForm r,
                                               double self, CandidateRow& row) {
  return candidate_top_impl<true>(terms, r, self, row);
}
EPRUNER_CLONES RowTop candidate_top(const IterationTerms& terms, double self, CandidateRow& row) {
  return candidate_top_impl<false>(terms, {}, self, row);
}

EPRUNER_CLONES Positives candidate_responsibilities(double damping, Top2<double> top, ClosedForm r,
                                                    CandidateRow& row, Column* column,
                                                    double* positive) {
  using V = Vector<double>;
  constexpr Index w = V::width;
  const V::type dampings = V::fill(damping), renews = V::fill(1 - damping), zero{};
  const V::type firsts = V::fill(top.first), seconds = V::fill(top.second);
  Positives found{0, 0};
  for (ActiveBlock *p = row.active, *end = p + row.n_active_blocks(); p != end; ++p) {
    const V::type s = V::load(p->s);
    const V::type rival = select(V::load(p->a) + s == firsts, seconds, firsts);
    const V::type fresh = dampings * V::load(p->r) + renews * (s - rival);
    V::store(p->r, fresh);
    const auto hit = fresh > zero;
    for (Index j = 0; j < w; ++j) {
      column[found.all] = p->column[j];
      positive[found.all] = fresh[j];
      found.all -= hit[j];  // -1 where R > 0
    }
  }
  const V::type grown = V::fill(r.grown), mu = V::fill(r.mu);
  for (const CandidateBlock* o = row.inactive;; ++o) {
    for (Index first = 0; first < CandidateBlock::width; first += w) {
      const V::type fresh = grown * V::load(o->s + first) - mu;
      const auto hit = fresh > zero;
      const Index hits = -(hit[0] + hit[1] + hit[2] + hit[3]);
      V::store(positive + found.all, fresh);
      std::copy_n(o->column + first, w, column + found.all);
      found.all += hits;
      found.inactive += hits;
      if (hits < w) return found;  // as S descends, so does R
    }
  }
}

EPRUNER_CLONES void descending_ranks(Index n, double* s, Column* ranks) {
  using V = Vector<double>;
  constexpr Index w = V::width;
  std::fill_n(s + n, w - 1, minus_infinity<double>);
  for (Index e = 0; e < n; ++e) {
    const V::type own = V::fill(s[e]);
    V::mask before{};  // minus how many
    Index k = 0;
    for (; k + w <= e; k += w) before += V::load(s + k) >= own;
    Column rank = 0;
    const Index mixed = k;  // the vector that holds e itself
    for (k += w; k < n; k += w) before += V::load(s + k) > own;
    for (Index j = mixed; j < std::min(n, mixed + w); ++j)
      rank += j < e ? s[j] >= s[e] : s[j] > s[e];
    ranks[e] = rank - static_cast<Column>(before[0] + before[1] + before[2] + before[3]);
  }
}

EPRUNER_CLONES Span<float> lane_maxima(Index n, Index self, const float* x, float below,
                                       float* lanes) {
  return lane_maxima_impl(n, self, x, below, lanes);
}
EPRUNER_CLONES Span<double> lane_maxima(Index n, Index self, const double* x, double below,
                                        double* lanes) {
  return lane_maxima_impl(n, self, x, below, lanes);
}

EPRUNER_CLONES float bisect(Index n, const float* x, float low, float high, float below,
                            Index want) {
  return bisect_impl(n, x, low, high, below, want);
}
EPRUNER_CLONES double bisect(Index n, const double* x, double low, double high, double below,
                             Index want) {
  return bisect_impl(n, x, low, high, below, want);
}

EPRUNER_CLONES Index collect_between(Index n, const float* x, float low, float below, Column* out) {
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

EPRUNER_CLONES double squared_distance(Index d, const float* x, const float* y) {
  return squared_distance_impl(d, x, y);
}
EPRUNER_CLONES double squared_distance(Index d, const double* x, const double* y) {
  return squared_distance_impl(d, x, y);
}

Jitter::Jitter(std::optional<std::uint64_t> seed, bool single_precision)
    : seed_(seed.value_or(0)),
      relative_(!seed ? 0 : single_precision ? 0x1p-23 : 0x1p-36),
      absolute_(!seed ? 0 : single_precision ? 0x1p-120 : 0x1p-1000) {}

double Jitter::operator()(double s, Index row, Index column) const {
  if (std::isinf(s)) return s;
  const std::uint64_t key = mix((static_cast<std::uint64_t>(row) + seed_) * kGolden + kGolden);
  const std::uint32_t h =
      mix_32(static_cast<std::uint32_t>(key >> 32) + static_cast<std::uint32_t>(column) * kGolden32);
  const double u = static_cast<double>(static_cast<std::int32_t>(h)) * 0x1p-31;
  return s + (relative_ * std::fabs(s) + absolute_) * u;
}

double Jitter::ceiling(double s) const {
  return std::isinf(s) ? s : s + (relative_ * std::fabs(s) + absolute_);
}

}  // namespace epruner
