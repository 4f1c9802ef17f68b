#include "dense.hpp"

#include <atomic>

#include "threads.hpp"

namespace epruner {
namespace {

constexpr Index kMaxBlocks = 64;
constexpr Index kSerialBelow = 96 * 96;  // entries; thread start-up costs more than it saves

template <class T>
Top2<double> widen(Top2<T> top) {
  return {static_cast<double>(top.first), static_cast<double>(top.second)};
}

}  // namespace

template <class T>
Dense<T>::Dense(Index n, const T* S, const Jitter& jitter, Diagonal diagonal,
                const Settings& settings)
    : n_(n),
      block_rows_(std::max<Index>(8, (n + kMaxBlocks - 1) / kMaxBlocks)),
      blocks_((n + block_rows_ - 1) / block_rows_),
      settings_(settings),
      diagonal_(std::move(diagonal)),
      s_(new T[as_size(n * n)]),
      r_(new T[as_size(n * n)]),
      a_(new T[as_size(n * n)]),
      total_(as_size(n), std::numeric_limits<T>::infinity()),
      partial_(as_size(blocks_ * n)) {
  if (n * n < kSerialBelow) settings_.threads = 1;
#pragma omp parallel for schedule(static) num_threads(settings_.threads)
  for (Index i = 0; i < n_; ++i) {
    T* own = s(i);
    for (Index k = 0; k < n_; ++k)
      own[k] = static_cast<T>(jitter(static_cast<double>(S[i * n_ + k]), i, k));
    std::fill_n(r(i), n_, T(0));
    std::fill_n(a(i), n_, T(0));
  }
}

// One row, the own entry set apart: A from the last iteration's totals, then R and its column sums.
template <class T>
void Dense<T>::update_row(Index i, T availability_damping, double* support) {
  const T damping = static_cast<T>(settings_.damping);
  const Index rest = n_ - i - 1, after = i + 1;
  T *S = s(i), *R = r(i), *A = a(i);
  const T* b = total_.data();
  Top2<T> top = dense_availabilities(i, availability_damping, b, S, R, A);
  top.add(
      dense_availabilities(rest, availability_damping, b + after, S + after, R + after, A + after));
  const auto own = as_size(i);
  Top2<double> wide = widen(top);
  wide.add(diagonal_.a[own] + diagonal_.preference[own]);
  diagonal_.update_responsibility(own, settings_.damping, wide);
  top.add(static_cast<T>(diagonal_.a[own] + diagonal_.preference[own]));
  dense_responsibilities(i, damping, top, S, A, R, support);
  dense_responsibilities(rest, damping, top, S + after, A + after, R + after, support + after);
}

// Run `row(i, support)` for all rows and sum the supports. Returns false when asked to stop.
template <class T>
template <class Row>
bool Dense<T>::for_each_row(const Row& row, const Poll& poll) {
  std::atomic<bool> stop{false};
  const auto n = as_size(n_);
#pragma omp parallel num_threads(settings_.threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (Index block = 0; block < blocks_; ++block) {
      if (stop.load(std::memory_order_relaxed)) continue;
      double* support = partial_.data() + as_size(block) * n;
      std::fill_n(support, n, 0.0);
      const Index end = std::min(n_, (block + 1) * block_rows_);
      for (Index i = block * block_rows_; i < end; ++i) row(i, support);
      if (thread_number() == 0 && poll()) stop.store(true, std::memory_order_relaxed);
    }
#pragma omp for schedule(static)
    for (Index k = 0; k < n_; ++k) {
      double sum = 0;
      for (Index block = 0; block < blocks_; ++block)
        sum += partial_[as_size(block) * n + as_size(k)];
      diagonal_.support[as_size(k)] = sum;
    }
  }
  return !stop;
}

template <class T>
void Dense<T>::complete_iteration(const std::vector<std::uint8_t>& done) {
  for_each_row(
      [&](Index i, double* support) {
        if (!done[as_size(i)]) return update_row(i, T(1), support);
        const T* R = r(i);
        for (Index k = 0; k < n_; ++k)
          if (k != i && R[k] > T(0)) support[k] += static_cast<double>(R[k]);
      },
      [] { return false; });
}

template <class T>
Outcome Dense<T>::iterate(Index t, const Poll& poll) {
  Outcome outcome;
  outcome.status = Status::exhausted;
  const T damping = static_cast<T>(settings_.damping);
  for (; t < settings_.max_iter; ++t) {
    std::transform(diagonal_.total.begin(), diagonal_.total.end(), total_.begin(),
                   [](double b) { return static_cast<T>(b); });
    if (!for_each_row([&](Index i, double* support) { update_row(i, damping, support); }, poll)) {
      outcome.status = Status::interrupted;
      break;
    }
    if (diagonal_.finish_iteration(t, settings_)) {
      outcome.status = Status::converged;
      ++t;
      break;
    }
  }
  outcome.n_iter = t;
  outcome.is_exemplar = diagonal_.is_exemplar;
  return outcome;
}

template <class T>
Outcome solve_dense(Index n, const T* S, const double* preference, const Jitter& jitter,
                    const Settings& settings, const Poll& poll) {
  return Dense<T>(n, S, jitter, Diagonal(n, preference, jitter), settings).iterate(0, poll);
}

template Outcome solve_dense<float>(Index, const float*, const double*, const Jitter&,
                                    const Settings&, const Poll&);
template Outcome solve_dense<double>(Index, const double*, const double*, const Jitter&,
                                     const Settings&, const Poll&);
template class Dense<float>;
template class Dense<double>;

}  // namespace epruner
