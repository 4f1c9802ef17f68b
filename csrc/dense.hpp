// The dense solver: every pair holds a message, one pass over memory per iteration.
#pragma once

#include <memory>

#include "messages.hpp"

namespace epruner {

template <class T>
class Dense {
 public:
  // S is (n, n); its diagonal is ignored.
  Dense(Index n, const T* S, const Jitter& jitter, Diagonal diagonal, const Settings& settings);

  // Iterate from iteration `t` (counted from 0) until the stop rule holds or max_iter is reached.
  Outcome iterate(Index t, const Poll& poll);

  // Take over another solver's iteration half-way: availabilities are those of this iteration
  // everywhere; `done[i]` says whether row i's responsibilities are, too.
  void complete_iteration(const std::vector<std::uint8_t>& done);

  T* s(Index i) { return s_.get() + i * n_; }
  T* r(Index i) { return r_.get() + i * n_; }
  T* a(Index i) { return a_.get() + i * n_; }
  Diagonal& diagonal() { return diagonal_; }

 private:
  void update_row(Index i, T availability_damping, double* support);
  template <class Row>
  bool for_each_row(const Row& row, const Poll& poll);

  Index n_, block_rows_, blocks_;
  Settings settings_;
  Diagonal diagonal_;
  std::unique_ptr<T[]> s_, r_, a_;
  std::vector<T> total_;         // diagonal_.total in the precision of the messages
  std::vector<double> partial_;  // (blocks, n) column sums: fixed blocks, summed in fixed order
};

template <class T>
Outcome solve_dense(Index n, const T* S, const double* preference, const Jitter& jitter,
                    const Settings& settings, const Poll& poll);

}  // namespace epruner
