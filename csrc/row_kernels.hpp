// Serial operations on one row of similarities or messages. Only row_kernels.cpp and simd.hpp know
// SIMD.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

namespace epruner {

using Index = std::int64_t;
using Column = std::int32_t;

// A position or length as the containers of the standard library take it.
template <class Integer>
constexpr std::size_t as_size(Integer i) {
  return static_cast<std::size_t>(i);
}

template <class T>
constexpr T minus_infinity = -std::numeric_limits<T>::infinity();

// The two largest values of a row, counted with multiplicity.
template <class T>
struct Top2 {
  T first = minus_infinity<T>;
  T second = minus_infinity<T>;

  void add(T x) {  // without a branch: which is larger cannot be predicted
    const T low = x < first ? x : first;
    second = second > low ? second : low;
    first = x > first ? x : first;
  }
  void add(Top2 other) {
    add(other.first);
    add(other.second);
  }
};

// ---- Tie-breaking ------------------------------------------------------------------------------

// Noise as a function of (seed, row, column); see epruner/cluster/jitter.py for the definition.
class Jitter {
 public:
  // Without a seed there is none.
  Jitter(std::optional<std::uint64_t> seed, bool single_precision);
  // What the noise of a row's entries depends on.
  struct Row {
    std::uint32_t key;
    double relative, absolute;
    double operator()(double s, Index column) const;
  };
  Row row(Index i) const;
  double operator()(double s, Index row, Index column) const;
  // A bound that no jittered similarity of at most `s` exceeds.
  double ceiling(double s) const;

 private:
  std::uint64_t seed_;
  double relative_, absolute_;
};

// out[k] <- x[k] of row `row` with its jitter.
void copy_jittered(Index n, const float* x, const Jitter& jitter, Index row, double* out);
void copy_jittered(Index n, const double* x, const Jitter& jitter, Index row, double* out);

// ---- Dense rows: every column holds a message --------------------------------------------------

// Rows of S, R and A, `stride` apart, a multiple of `width`. Own entries and places to spare have
// S = -inf, which no maximum or sum notices.
struct DenseRows {
  static constexpr Index width = 4;
  Index stride;
  double *s, *r, *a;
};

// One row of an iteration: A <- damping A + (1 - damping) min(0, b - max(0, R)), then R <- damping
// R
// + (1 - damping) (S - rival), the rival of the largest of A + S being the second and that of all
// others the largest; support += max(0, R). `self` is A + S of the own entry; returns the two
// largest.
Top2<double> dense_row(const DenseRows& rows, Index i, double damping, const double* b, double self,
                       double* support);

// ---- Candidate rows: only some columns hold messages -------------------------------------------

// Candidates that were their row's maximum at some time, four together: these hold both messages.
// Places to spare have S = R = A = -inf, which no update changes and no maximum or sum notices.
struct alignas(32) ActiveBlock {
  static constexpr Index width = 4;
  double s[width], r[width], a[width];
  Column column[width];
};

// Eight of the others, in descending order of similarity. Places to spare have S = -inf.
struct alignas(32) CandidateBlock {
  static constexpr Index width = 8;
  double s[width], a[width];
  Column column[width];
};

// The candidates of a row. R of the inactive ones is grown s - mu for a `grown` and a `mu` of the
// row: only being the maximum makes a difference to R. A of those that had R > max(0, b) at some
// time, b being their column's total support in that iteration, lies in the first
// `n_stored_blocks`; A of the others, -inf here, is their column's A of all pairs that never had.
struct CandidateRow {
  ActiveBlock* active = nullptr;
  CandidateBlock* inactive = nullptr;  // one more than hold candidates, at least
  std::int32_t n_active = 0, n_inactive = 0, n_stored_blocks = 0;
  std::int32_t n_positive = 0;  // inactive ones with R > 0 after the last iteration: the first

  Index n_stored() const { return n_stored_blocks * CandidateBlock::width; }
  Index n_active_blocks() const { return (n_active + ActiveBlock::width - 1) / ActiveBlock::width; }
  double& s(Index e) const {
    return inactive[e / CandidateBlock::width].s[e % CandidateBlock::width];
  }
  double& a(Index e) const {
    return inactive[e / CandidateBlock::width].a[e % CandidateBlock::width];
  }
  Column& column(Index e) const {
    return inactive[e / CandidateBlock::width].column[e % CandidateBlock::width];
  }
};

// R = grown s - mu of pairs that were never their row's maximum.
struct ClosedForm {
  double grown, mu;

  ClosedForm after(double damping, double maximum) const {
    return {damping * grown + (1 - damping), damping * mu + (1 - damping) * maximum};
  }
};

// What is the same for all rows of an iteration: the damping, every column's total support in the
// last one, and A of the pairs without messages of their own, which is `most` at most
struct IterationTerms {
  double damping;
  const double* total;
  const double* availability;
  double most;  // but for those of the prominent columns, ...
  const float*
      prominent_availability;  // ... which are rounded up, `n_prominent` of them, a multiple
  Index n_prominent;           // of 8
};

// A bound on x that has its place among numbers of single precision.
inline float rounded_up(double x) {
  const auto nearest = static_cast<float>(x);
  return std::isinf(nearest) && x < 0 ? minus_infinity<float>
                                      : nearest + std::fabs(nearest) * 0x1p-23f + 0x1p-149f;
}

// The two largest of A + S over a row, its own point's among them. A has been updated.
Top2<double> candidate_top(const IterationTerms& terms, double self, CandidateRow& row);

// How many inactive candidates come first in the list up to the last with R > max(0, b) among those
// that do not store A; 0 if there are none. R and b are the last iteration's.
Index candidates_to_store(const double* total, ClosedForm r, const CandidateRow& row);

// Adds R > 0 of the inactive candidates to `support` and counts them.
void add_inactive_positives(ClosedForm r, CandidateRow& row, double* support);

// What is known of the pairs that a row does not list: a bound on their similarities, and whether
// their R > 0 are in the row's support already.
struct Rest {
  double most;
  bool summed;
  const float* prominent;  // bounds on those in prominent columns
};
// One row of an iteration, as far as it gets: updates A where it is stored, unless that has been
// done; then, unless an unlisted pair may be the maximum or have R > 0, R of the active candidates,
// and adds those > 0 to `support`; then, unless one of them is the new maximum, R > 0 of the
// inactive ones.
struct RowPass {
  Top2<double> top;
  enum { done, new_maximum, needs_prominent, needs_candidates, unlisted_positives } state;
};
// Whether the sum of bounds may exceed what it is compared to: sums of single precision are
// rounded.
inline bool may_exceed(float sum, double second) {
  return static_cast<double>(sum) + std::fabs(static_cast<double>(sum)) * 0x1p-23 > second;
}
RowPass pass_row(const IterationTerms& terms, ClosedForm r, double self, Rest rest,
                 CandidateRow& row, double* support, bool updated);

// ranks[e] <- how many of s come before s[e] in descending order, equal ones in their own order.
// Without a branch, in n² / 4 steps: for the few entries that join a list. `s` has room for n + 3.
void descending_ranks(Index n, double* s, Column* ranks);

// ---- Selection: the largest entries of a row in one read ----------------------------------------

template <class T>
constexpr Index kLanes = 256 / sizeof(T);

// What the maxima of a row's lanes span, and whether the row holds similarities only: no NaN, no
// +inf.
template <class T>
struct Span {
  T least, most;
  bool valid;
};

// lanes[j] <- the maximum of x[k] < below over k = j (mod kLanes), k != self (which may lie
// outside).
Span<float> lane_maxima(Index n, Index self, const float* x, float below, float* lanes);
Span<double> lane_maxima(Index n, Index self, const double* x, double below, double* lanes);

// A value in [low, high] that at least `want` and not many more entries of x below `below` reach.
// At least `want` reach `low`; fewer reach `high`. Counting is vectorised and exactness is not
// needed, which beats a selection.
float bisect(Index n, const float* x, float low, float high, float below, Index want);
double bisect(Index n, const double* x, double low, double high, double below, Index want);

// How many entries satisfy low <= x[k] < below (n < 2^31).
Index count_between(Index n, const float* x, float low, float below);
Index count_between(Index n, const double* x, double low, double below);

// Write the positions k with low <= x[k] < below to `out` (n) in ascending order; return how many.
Index collect_between(Index n, const float* x, float low, float below, Column* out);
Index collect_between(Index n, const double* x, double low, double below, Column* out);

// How many entries of x are finite, how many of those are below `low`, and how many in
// [low, above), whose places go to `out`.
struct Parted {
  Index finite, below, inside;
};
Parted part(Index n, const float* x, float low, float above, Column* out);
Parted part(Index n, const double* x, double low, double above, Column* out);

// ---- Whole rows of closed forms -----------------------------------------------------------------

// support[k] += max(0, R[k]) of row `row`, R = grown s - mu of the similarities x with their
// jitter.
void add_positives(Index n, const float* x, const Jitter& jitter, Index row, ClosedForm r,
                   double* support);
void add_positives(Index n, const double* x, const Jitter& jitter, Index row, ClosedForm r,
                   double* support);

// The least x[k] < below with R = grown (x[k] + margin) - mu > max(0, total[k]); +inf if there is
// none.
double least_exceeding(Index n, const float* x, double below, double margin, ClosedForm r,
                       const double* total);
double least_exceeding(Index n, const double* x, double below, double margin, ClosedForm r,
                       const double* total);

// ---- All columns --------------------------------------------------------------------------------

// The largest A of `availability` and the least of `total`.
struct ColumnBounds {
  double availability = minus_infinity<double>;
  double total = std::numeric_limits<double>::infinity();
};
// A of the pairs that store none, a[k] <- damping before[k] + (1 - damping) min(0, total[k]).
ColumnBounds renew_availability(Index n, double damping, const double* total, const double* before,
                                double* a);

// ---- Features ----------------------------------------------------------------------------------

// s[k] <- 2 dots[k] - (norm + norms[k]): minus the squared distance, from inner products. In place
// where s == dots.
void similarities_from_dots(Index n, const float* dots, float norm, const float* norms, float* s);
void similarities_from_dots(Index n, const double* dots, double norm, const double* norms,
                            double* s);

// ||x - y||² over d features, differences and sum in float64.
double squared_distance(Index d, const float* x, const float* y);
double squared_distance(Index d, const double* x, const double* y);

}  // namespace epruner
