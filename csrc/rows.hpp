// Serial operations on one row of similarities or messages. rows.cpp is the only file that knows SIMD.
#pragma once

#include <cstdint>
#include <limits>

namespace epruner {

using Index = std::int64_t;
using Column = std::int32_t;

template <class T>
constexpr T minus_infinity = -std::numeric_limits<T>::infinity();

// The two largest values of a row, counted with multiplicity.
template <class T>
struct Top2 {
  T first = minus_infinity<T>;
  T second = minus_infinity<T>;

  void add(T x) {
    second = x > first ? first : (x > second ? x : second);
    first = x > first ? x : first;
  }
};

// ---- Dense rows: every column holds a message --------------------------------------------------

// A <- keep A + (1 - keep) min(0, b - max(0, R)); returns the two largest of A + S.
Top2<float> dense_availabilities(Index n, float keep, const float* b, const float* s,
                                 const float* r, float* a);
Top2<double> dense_availabilities(Index n, double keep, const double* b, const double* s,
                                  const double* r, double* a);

// R <- keep R + (1 - keep) (S - (A + S == top.first ? top.second : top.first)); support += max(0, R).
void dense_responsibilities(Index n, float keep, Top2<float> top, const float* s, const float* a,
                            float* r, double* support);
void dense_responsibilities(Index n, double keep, Top2<double> top, const double* s,
                            const double* a, double* r, double* support);

// ---- Listed rows: only some columns hold a message ---------------------------------------------

Top2<double> listed_availabilities(Index n, double keep, const double* b, const Column* column,
                                   const double* s, const double* r, double* a);
Top2<double> listed_top2(Index n, const double* s, const double* a);
void listed_responsibilities(Index n, double keep, Top2<double> top, const double* s,
                             const double* a, double* r);

// ---- Selection: the largest entries of a row in one read ----------------------------------------

constexpr Index kLanes = 128;

// lanes[j] <- max(lanes[j], x[k]) over k = j (mod kLanes) with x[k] < below.
void lane_maxima(Index n, const float* x, float below, float* lanes);
void lane_maxima(Index n, const double* x, double below, double* lanes);

// Write the positions k with low <= x[k] < below to `out` in ascending order; return how many.
Index collect_between(Index n, const float* x, float low, float below, Column* out);
Index collect_between(Index n, const double* x, double low, double below, Column* out);

// Whether a row holds something that is no similarity: NaN or +inf.
bool has_invalid(Index n, const float* x);
bool has_invalid(Index n, const double* x);

// ---- Tie-breaking ------------------------------------------------------------------------------

// Noise as a function of (seed, row, column); see epruner/cluster/ties.py for the definition.
class Jitter {
 public:
  Jitter(std::uint64_t seed, bool single_precision);
  double operator()(double s, Index row, Index column) const;
  // A bound that no jittered similarity of at most `s` exceeds.
  double ceiling(double s) const;

 private:
  std::uint64_t seed_;
  double relative_, absolute_;
};

}  // namespace epruner
