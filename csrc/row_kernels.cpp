#include "row_kernels.hpp"

#include <algorithm>
#include <cmath>

#include "float_bits.hpp"
#include "simd.hpp"

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

// s with its noise; not for infinite s.
EPRUNER_INLINE double noisy(double s, const Jitter::Row& noise, std::uint32_t column) {
  const std::uint32_t h = mix_32(noise.key + column * kGolden32);
  const double u = static_cast<double>(static_cast<std::int32_t>(h)) * 0x1p-31;
  return s + (noise.relative * std::fabs(s) + noise.absolute) * u;
}

EPRUNER_INLINE Vector<double>::type gathered(const double* x, const Column* k) {
  const Vector<double>::type v = {x[k[0]], x[k[1]], x[k[2]], x[k[3]]};
  return v;
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

// As above, with the other counts from the same look at x.
template <class T>
EPRUNER_INLINE Parted part_impl(Index n, const T* __restrict x, T low, T above,
                                Column* __restrict out) {
  using V = Vector<T>;
  constexpr Index w = V::width;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const typename V::type lows = V::fill(low), aboves = V::fill(above), least = V::fill(-infinity),
                         most = V::fill(infinity);
  typename V::mask finite{}, below{};  // minus the counts of each lane
  Parted found{0, 0, 0};
  Index k = 0;
  for (; k + w <= n; k += w) {
    const auto v = V::load(x + k);
    finite += (v > least) & (v < most);
    below += (v > least) & (v < lows);
    const auto hit = (v < aboves) & (v >= lows);
    if (V::any(hit)) found.inside = append_hits(k, hit, w, out, found.inside);
  }
  for (Index j = 0; j < w; ++j) {
    found.finite -= finite[j];
    found.below -= below[j];
  }
  for (; k < n; ++k) {
    found.finite += x[k] > -infinity && x[k] < infinity;
    found.below += x[k] > -infinity && x[k] < low;
    if (x[k] >= low && x[k] < above) out[found.inside++] = static_cast<Column>(k);
  }
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
    const V::type difference = V::converted(x + c) - V::converted(y + c);
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
EPRUNER_INLINE Top2<double> availabilities(const IterationTerms& terms, ClosedForm r, double self,
                                           CandidateRow& row) {
  using V = Vector<double>;
  constexpr Index w = V::width;
  const V::type damping = V::fill(terms.damping), renew = V::fill(1 - terms.damping);
  const V::type grown = V::fill(r.grown), mu = V::fill(r.mu);
  Top2Lanes<double> even, odd;
  for (ActiveBlock *p = row.active, *end = p + row.n_active_blocks(); p != end; ++p) {
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
  return top;
}

EPRUNER_INLINE bool active_responsibilities(double damping, Top2<double> top, double self,
                                            CandidateRow& row, double* support) {
  using V = Vector<double>;
  const V::type dampings = V::fill(damping), renews = V::fill(1 - damping), zero{};
  const V::type firsts = V::fill(top.first), seconds = V::fill(top.second);
  V::mask maxima{};
  for (ActiveBlock *p = row.active, *end = p + row.n_active_blocks(); p != end; ++p) {
    const V::type s = V::load(p->s);
    const V::mask is_first = V::load(p->a) + s == firsts;
    maxima |= is_first;
    const V::type fresh =
        dampings * V::load(p->r) + renews * (s - select(is_first, seconds, firsts));
    V::store(p->r, fresh);
    const V::type positive = select(fresh > zero, fresh, zero);
    for (Index j = 0; j < V::width; ++j) support[p->column[j]] += positive[j];
  }
  return self == top.first || V::any(maxima);
}

EPRUNER_INLINE float largest_sum(Index n, const float* x, const float* y) {
  using V = Vector<float>;
  V::type most = V::fill(minus_infinity<float>);
  for (Index k = 0; k < n; k += V::width) {
    const V::type sum = V::load(x + k) + V::load(y + k);
    most = select(sum > most, sum, most);
  }
  float largest = most[0];
  for (Index j = 1; j < V::width; ++j) largest = most[j] > largest ? most[j] : largest;
  return largest;
}

EPRUNER_INLINE void add_inactive_positives_impl(ClosedForm r, CandidateRow& row, double* support) {
  Index found = 0;  // as S descends, so does R
  for (const CandidateBlock* o = row.inactive;; ++o)
    for (Index j = 0; j < CandidateBlock::width; ++j) {
      const double fresh = r.grown * o->s[j] - r.mu;
      if (!(fresh > 0)) {
        row.n_positive = static_cast<std::int32_t>(found);
        return;
      }
      support[o->column[j]] += fresh;
      ++found;
    }
}

template <class T>
EPRUNER_INLINE void copy_jittered_impl(Index n, const T* __restrict x, const Jitter::Row& noise,
                                       double* __restrict out) {
  for (Index k = 0; k < n; ++k) {
    const double s = static_cast<double>(x[k]);
    const double noised = noisy(s, noise, static_cast<std::uint32_t>(k));
    out[k] = s > minus_infinity<double> ? noised : s;
  }
}

template <class T>
EPRUNER_INLINE void add_positives_impl(Index n, const T* __restrict x, const Jitter::Row& noise,
                                       ClosedForm r, double* __restrict support) {
  for (Index k = 0; k < n; ++k) {
    const double s = noisy(static_cast<double>(x[k]), noise, static_cast<std::uint32_t>(k));
    const double fresh = r.grown * s - r.mu;  // NaN for -inf
    support[k] += fresh > 0 ? fresh : 0;
  }
}

template <class T>
EPRUNER_INLINE double least_exceeding_impl(Index n, const T* __restrict x, double below,
                                           double margin, ClosedForm r,
                                           const double* __restrict total) {
  double least = std::numeric_limits<double>::infinity();
  for (Index k = 0; k < n; ++k) {
    const double s = static_cast<double>(x[k]);
    const double most = r.grown * (s + margin) - r.mu;
    const bool exceeds = (s < below) & (most > 0) & (most > total[k]);
    const double own = exceeds ? s : std::numeric_limits<double>::infinity();
    least = own < least ? own : least;
  }
  return least;
}

}  // namespace

EPRUNER_CLONES Top2<double> dense_row(const DenseRows& rows, Index i, double damping,
                                      const double* b, double self, double* support) {
  using V = Vector<double>;
  constexpr Index w = V::width;
  static_assert(w == DenseRows::width);
  const double* __restrict s = rows.s + i * rows.stride;
  double* __restrict r = rows.r + i * rows.stride;
  double* __restrict a = rows.a + i * rows.stride;
  const V::type dampings = V::fill(damping), renews = V::fill(1 - damping), zero{};
  Top2Lanes<double> lanes;
  for (Index k = 0; k < rows.stride; k += w) {
    const auto fresh =
        damped_availability(dampings, renews, V::load(b + k), V::load(r + k), V::load(a + k));
    V::store(a + k, fresh);
    lanes.add(fresh + V::load(s + k));
  }
  Top2<double> top = lanes.fold();
  top.add(self);
  const V::type firsts = V::fill(top.first), seconds = V::fill(top.second);
  for (Index k = 0; k < rows.stride; k += w) {
    const V::type own = V::load(s + k);
    const V::type rival = select(V::load(a + k) + own == firsts, seconds, firsts);
    const V::type fresh = dampings * V::load(r + k) + renews * (own - rival);
    V::store(r + k, fresh);
    V::store(support + k, V::load(support + k) + select(fresh > zero, fresh, zero));
  }
  return top;
}

EPRUNER_CLONES Top2<double> candidate_top(const IterationTerms& terms, double self,
                                          CandidateRow& row) {
  return availabilities<false>(terms, {}, self, row);
}

EPRUNER_CLONES Index candidates_to_store(const double* total, ClosedForm r,
                                         const CandidateRow& row) {
  Index last = 0;
  for (Index e = row.n_stored(); e < row.n_positive; ++e)
    if (r.grown * row.s(e) - r.mu > std::max(0.0, total[row.column(e)])) last = e + 1;
  return last;
}

EPRUNER_CLONES void add_inactive_positives(ClosedForm r, CandidateRow& row, double* support) {
  add_inactive_positives_impl(r, row, support);
}

EPRUNER_CLONES RowPass pass_row(const IterationTerms& terms, ClosedForm r, double self, Rest rest,
                                CandidateRow& row, double* support, bool updated) {
  RowPass pass{updated ? availabilities<false>(terms, r, self, row)
                       : availabilities<true>(terms, r, self, row),
               RowPass::done};
  const ClosedForm now = r.after(terms.damping, pass.top.first);
  if (rest.most + terms.most > pass.top.second)
    pass.state = RowPass::needs_candidates;
  else if (may_exceed(largest_sum(terms.n_prominent, rest.prominent, terms.prominent_availability),
                      pass.top.second))
    pass.state = RowPass::needs_prominent;
  else if (!rest.summed && now.grown * rest.most > now.mu)
    pass.state = RowPass::unlisted_positives;
  else if (!active_responsibilities(terms.damping, pass.top, self, row, support))
    pass.state = RowPass::new_maximum;
  else
    add_inactive_positives_impl(now, row, support);
  return pass;
}

EPRUNER_CLONES ColumnBounds renew_availability(Index n, double damping, const double* total,
                                               const double* before, double* a) {
  using V = Vector<double>;
  constexpr Index w = V::width;
  const V::type dampings = V::fill(damping), renews = V::fill(1 - damping), zero{};
  ColumnBounds bounds;
  V::type most = V::fill(bounds.availability), least = V::fill(bounds.total);
  Index k = 0;
  for (; k + w <= n; k += w) {
    const V::type b = V::load(total + k);
    const V::type fresh = damped_availability(dampings, renews, b, zero, V::load(before + k));
    V::store(a + k, fresh);
    most = select(fresh > most, fresh, most);
    least = select(b < least, b, least);
  }
  const auto bound = [&](double availability, double b) {
    bounds.availability = availability > bounds.availability ? availability : bounds.availability;
    bounds.total = b < bounds.total ? b : bounds.total;
  };
  for (Index j = 0; j < w; ++j) bound(most[j], least[j]);
  for (; k < n; ++k) {
    a[k] = damped_availability(damping, 1 - damping, total[k], 0.0, before[k]);
    bound(a[k], total[k]);
  }
  return bounds;
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

EPRUNER_CLONES Parted part(Index n, const float* x, float low, float above, Column* out) {
  return part_impl(n, x, low, above, out);
}
EPRUNER_CLONES Parted part(Index n, const double* x, double low, double above, Column* out) {
  return part_impl(n, x, low, above, out);
}

EPRUNER_CLONES Index count_between(Index n, const float* x, float low, float below) {
  return count_between_impl(n, x, low, below);
}
EPRUNER_CLONES Index count_between(Index n, const double* x, double low, double below) {
  return count_between_impl(n, x, low, below);
}

EPRUNER_CLONES void similarities_from_dots(Index n, const float* dots, float norm,
                                           const float* norms, float* s) {
  similarities_from_dots_impl(n, dots, norm, norms, s);
}
EPRUNER_CLONES void similarities_from_dots(Index n, const double* dots, double norm,
                                           const double* norms, double* s) {
  similarities_from_dots_impl(n, dots, norm, norms, s);
}

#define EPRUNER_JITTERED_ROWS(T)                                                          \
  EPRUNER_CLONES void copy_jittered(Index n, const T* x, const Jitter& jitter, Index row, \
                                    double* out) {                                        \
    copy_jittered_impl(n, x, jitter.row(row), out);                                       \
  }                                                                                       \
  EPRUNER_CLONES void add_positives(Index n, const T* x, const Jitter& jitter, Index row, \
                                    ClosedForm r, double* support) {                      \
    add_positives_impl(n, x, jitter.row(row), r, support);                                \
  }                                                                                       \
  EPRUNER_CLONES double least_exceeding(Index n, const T* x, double below, double margin, \
                                        ClosedForm r, const double* total) {              \
    return least_exceeding_impl(n, x, below, margin, r, total);                           \
  }
EPRUNER_JITTERED_ROWS(float)
EPRUNER_JITTERED_ROWS(double)

EPRUNER_CLONES double squared_distance(Index d, const float* x, const float* y) {
  return squared_distance_impl(d, x, y);
}
EPRUNER_CLONES double squared_distance(Index d, const double* x, const double* y) {
  return squared_distance_impl(d, x, y);
}

Jitter::Jitter(std::optional<std::uint64_t> seed, bool single_precision)
    : seed_(seed.value_or(0)),
      relative_(!seed              ? 0
                : single_precision ? 0x1p-23
                                   : 0x1p-36),
      absolute_(!seed              ? 0
                : single_precision ? 0x1p-120
                                   : 0x1p-1000) {}

Jitter::Row Jitter::row(Index i) const {
  const std::uint64_t key = mix((static_cast<std::uint64_t>(i) + seed_) * kGolden + kGolden);
  return {static_cast<std::uint32_t>(key >> 32), relative_, absolute_};
}

double Jitter::Row::operator()(double s, Index column) const {
  return std::isinf(s) ? s : noisy(s, *this, static_cast<std::uint32_t>(column));
}

double Jitter::operator()(double s, Index i, Index k) const { return row(i)(s, k); }

double Jitter::ceiling(double s) const {
  return std::isinf(s) ? s : s + (relative_ * std::fabs(s) + absolute_);
}

}  // namespace epruner
