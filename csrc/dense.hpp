// The dense solver: every pair holds a message, one pass over memory per iteration.
#pragma once

#include "messages.hpp"

namespace epruner {

class Dense {
 public:
  // S is (n, n); its diagonal is ignored.
  template <class T>
  Dense(Index n, const T* S, const double* preference, const Jitter& jitter,
        const Settings& settings);

  // Iterate until the stop rule holds or max_iter is reached.
  Outcome iterate(const Poll& poll);

 private:
  void update_row(Index i, double* support);
  bool update_rows(const Poll& poll);

  Index n_, stride_, block_rows_, blocks_;
  Settings settings_;
  Diagonal diagonal_;
  std::vector<double> s_, r_, a_;  // (n, stride)
  std::vector<double> total_;      // of the last iteration, with places to spare
  std::vector<double> partial_;    // (blocks, stride) column sums: fixed blocks, in fixed order
};

template <class T>
Outcome solve_dense(Index n, const T* S, const double* preference, const Jitter& jitter,
                    const Settings& settings, const Poll& poll) {
  return Dense(n, S, preference, jitter, settings).iterate(poll);
}

}  // namespace epruner
