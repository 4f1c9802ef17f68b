// What every solver shares: settings, the stop rule, the outcome.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "row_kernels.hpp"

namespace epruner {

struct Settings {
  double damping = 0.5;
  Index max_iter = 200;
  Index convergence_iter = 15;
  int threads = 1;
};

// Called now and then on the calling thread only; true asks the solver to stop.
using Poll = std::function<bool()>;

enum class Status { running, converged, exhausted, needs_candidates, interrupted };

struct Outcome {
  std::vector<std::uint8_t> is_exemplar;
  Index n_iter = 0;
  Status status = Status::running;
};

// The own entries of every point (the diagonals of A and R), its total support, and the stop rule.
class Diagonal {
 public:
  Diagonal(Index n, const double* preferences, const Jitter& jitter)
      : preference(as_size(n)),
        a(as_size(n)),
        r(as_size(n)),
        support(as_size(n)),
        total(as_size(n), std::numeric_limits<double>::infinity()),
        is_exemplar(as_size(n)),
        streak_(as_size(n)) {
    set_preference(preferences, jitter);
  }

  void set_preference(const double* preferences, const Jitter& jitter) {
    for (std::size_t i = 0; i < preference.size(); ++i) {
      const auto own = static_cast<Index>(i);
      preference[i] = jitter(preferences[i], own, own);
    }
  }

  // R[i,i], once the two largest of row i (own entry included) are known.
  void update_responsibility(std::size_t i, double damping, Top2<double> top) {
    const double rival = a[i] + preference[i] == top.first ? top.second : top.first;
    r[i] = damping * r[i] + (1 - damping) * (preference[i] - rival);
  }

  // b, A[k,k] and the exemplars, once `support` holds the sum of every column's max(0, R).
  // Returns whether the stop rule holds after iteration `t` (counted from 0).
  bool finish_iteration(Index t, const Settings& settings) {
    const double damping = settings.damping;
    Index shortest = std::numeric_limits<Index>::max();
    bool any = false;
    for (std::size_t k = 0; k < a.size(); ++k) {
      total[k] = support[k] + r[k];
      a[k] = damping * a[k] + (1 - damping) * support[k];
      const std::uint8_t now = a[k] + r[k] > 0;
      streak_[k] = now == is_exemplar[k] ? streak_[k] + 1 : 1;
      is_exemplar[k] = now;
      any |= now != 0;
      shortest = std::min(shortest, streak_[k]);
    }
    return any && t >= settings.convergence_iter && shortest >= settings.convergence_iter;
  }

  std::vector<double> preference, a, r, support, total;
  std::vector<std::uint8_t> is_exemplar;

 private:
  std::vector<Index> streak_;  // iterations since each point last changed its role
};

}  // namespace epruner
