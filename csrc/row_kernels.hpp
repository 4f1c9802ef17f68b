// Serial operations on one row of similarities or messages. Only row_kernels.cpp and simd.hpp know
// SIMD.
#pragma once

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

// ---- Dense rows: every column holds a message --------------------------------------------------

// A <- damping A + (1 - damping) min(0, b - max(0, R)); returns the two largest of A + S.
Top2<float> dense_availabilities(Index n, float damping, const float* b, const float* s,
                                 const float* r, float* a);
Top2<double> dense_availabilities(Index n, double damping, const double* b, const double* s,
                                  const double* r, double* a);

// R <- damping R + (1 - damping) (S - (A + S == top.first ? top.second : top.first)); support +=
// max(0, R).
void dense_responsibilities(Index n, float damping, Top2<float> top, const float* s, const float* a,
                            float* r, double* support);
void dense_responsibilities(Index n, double damping, Top2<double> top, const double* s,
                            const double* a, double* r, double* support);

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
// row: only being the maximum makes a difference to R. Those that had R > 0 at some time lie in the
// first `n_stored_blocks`; A of the others, -inf here, is their column's A of all pairs that never
// had R > 0.
struct CandidateRow {
  ActiveBlock* active = nullptr;
  CandidateBlock* inactive = nullptr;  // one more than hold candidates, at least
  std::int32_t n_active = 0, n_inactive = 0, n_stored_blocks = 0;

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

struct ClosedForm {
  double grown, mu;
};

// What is the same for all rows of an iteration: the damping, every column's total support in the
// last one, and A of the pairs without messages of their own, which is `most` at most.
struct IterationTerms {
  double damping;
  const double* total;
  const double* availability;
  double most;
};

// The two largest of A + S over a row, its own point's among them, and whether the largest is an
// active candidate's or its own point's.
struct RowTop {
  Top2<double> values;
  bool is_active;
};
// Updates A where it is stored by the last R.
RowTop candidate_availabilities(const IterationTerms& terms, ClosedForm r, double self,
                                CandidateRow& row);
// When A has been updated.
RowTop candidate_top(const IterationTerms& terms, double self, CandidateRow& row);

struct Positives {
  Index all, inactive;  // how many candidates have R > 0, and how many of them are inactive
};
// Updates R of the active ones and writes all R > 0 with their columns; both need room for three
// more.
Positives candidate_responsibilities(double damping, Top2<double> top, ClosedForm r,
                                     CandidateRow& row, Column* column, double* positive);

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

// Write the positions k with x[k] >= low[k] to `out` (n) in ascending order; return how many.
Index collect_at_least(Index n, const float* x, const float* low, Column* out);
Index collect_at_least(Index n, const double* x, const double* low, Column* out);

// ---- Features ----------------------------------------------------------------------------------

// s[k] <- 2 dots[k] - (norm + norms[k]): minus the squared distance, from inner products. In place
// where s == dots.
void similarities_from_dots(Index n, const float* dots, float norm, const float* norms, float* s);
void similarities_from_dots(Index n, const double* dots, double norm, const double* norms,
                            double* s);

// ||x - y||² over d features, differences and sum in float64.
double squared_distance(Index d, const float* x, const float* y);
double squared_distance(Index d, const double* x, const double* y);

// ---- Tie-breaking ------------------------------------------------------------------------------

// Noise as a function of (seed, row, column); see epruner/cluster/jitter.py for the definition.
class Jitter {
 public:
  // Without a seed there is none.
  Jitter(std::optional<std::uint64_t> seed, bool single_precision);
  double operator()(double s, Index row, Index column) const;
  // A bound that no jittered similarity of at most `s` exceeds.
  double ceiling(double s) const;

 private:
  std::uint64_t seed_;
  double relative_, absolute_;
};

}  // namespace epruner
