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

// Points from `first` on, up to `last`.
struct Range {
  Index first, last;

  Index size() const { return last - first; }
};

// What the roles of some points tell about whether iterations may stop.
struct Roles {
  bool any_exemplar = false;
  Index shortest = std::numeric_limits<Index>::max();  // iterations since one last changed its role

  // After iteration `t`, counted from 0.
  bool settled(Index t, Index convergence_iter) const {
    return any_exemplar && t >= convergence_iter && shortest >= convergence_iter;
  }
};

// The own entries of some of n points (the diagonals of A and R), their support and their roles;
// total support of all.
class Diagonal {
 public:
  Diagonal(Index n, Range points, const double* preferences, const Jitter& jitter)
      : preference(as_size(points.size())),
        a(as_size(points.size())),
        r(as_size(points.size())),
        support(as_size(points.size())),
        total(as_size(n), std::numeric_limits<double>::infinity()),
        is_exemplar(as_size(points.size())),
        streak(as_size(points.size())),
        first_(points.first) {
    set_preference(preferences, jitter);
  }

  void set_preference(const double* preferences, const Jitter& jitter) {
    for (std::size_t q = 0; q < preference.size(); ++q) {
      const Index own = first_ + static_cast<Index>(q);
      preference[q] = jitter(preferences[q], own, own);
    }
  }

  // R[i,i] of the q-th point, once the two largest of its row (own entry included) are known.
  void update_responsibility(std::size_t q, double damping, Top2<double> top) {
    const double rival = a[q] + preference[q] == top.first ? top.second : top.first;
    r[q] = damping * r[q] + (1 - damping) * (preference[q] - rival);
  }

  // b, A[k,k] and the exemplars of these points, once `support` holds the sums of their columns'
  // max(0, R).
  Roles finish_iteration(double damping) {
    Roles roles;
    double* own_total = total.data() + first_;
    for (std::size_t q = 0; q < a.size(); ++q) {
      own_total[q] = support[q] + r[q];
      a[q] = damping * a[q] + (1 - damping) * support[q];
      const std::uint8_t now = a[q] + r[q] > 0;
      streak[q] = now == is_exemplar[q] ? streak[q] + 1 : 1;
      is_exemplar[q] = now;
      roles.any_exemplar |= now != 0;
      roles.shortest = std::min(roles.shortest, streak[q]);
    }
    return roles;
  }

  std::vector<double> preference, a, r, support;
  std::vector<double> total;  // of all n
  std::vector<std::uint8_t> is_exemplar;
  std::vector<Index> streak;  // iterations since each point last changed its role

 private:
  Index first_;
};

}  // namespace epruner
