#include "dense.hpp"

#include <atomic>

#include "threads.hpp"

namespace epruner {
namespace {

constexpr Index kMaxBlocks = 64, kLeastBlock = 128;  // rows
constexpr Index kSerialBelow = 256 * 256;            // entries; a start of threads costs more

Index padded(Index n) { return (n + DenseRows::width - 1) / DenseRows::width * DenseRows::width; }

}  // namespace

template <class T>
Dense::Dense(Index n, const T* S, const double* preference, const Jitter& jitter,
             const Settings& settings)
    : n_(n),
      stride_(padded(n)),
      block_rows_(std::max(kLeastBlock, (n + kMaxBlocks - 1) / kMaxBlocks)),
      blocks_((n + block_rows_ - 1) / block_rows_),
      settings_(settings),
      diagonal_(n, {0, n}, preference, jitter),
      s_(as_size(n * stride_), minus_infinity<double>),
      r_(as_size(n * stride_)),
      a_(as_size(n * stride_)),
      total_(as_size(stride_), std::numeric_limits<double>::infinity()),
      partial_(as_size(blocks_ * stride_)) {
  if (n * n < kSerialBelow) settings_.threads = 1;
#pragma omp parallel for schedule(static) num_threads(settings_.threads)
  for (Index i = 0; i < n_; ++i) {
    copy_jittered(n_, S + i * n_, jitter, i, s_.data() + i * stride_);
    s_[as_size(i * stride_ + i)] = minus_infinity<double>;
  }
}

void Dense::update_row(Index i, double* support) {
  const auto own = as_size(i);
  const DenseRows rows{stride_, s_.data(), r_.data(), a_.data()};
  const double self = diagonal_.a[own] + diagonal_.preference[own];
  const Top2<double> top = dense_row(rows, i, settings_.damping, total_.data(), self, support);
  diagonal_.update_responsibility(own, settings_.damping, top);
}

// Returns false when asked to stop.
bool Dense::update_rows(const Poll& poll) {
  std::copy(diagonal_.total.begin(), diagonal_.total.end(), total_.begin());
  std::atomic<bool> stop{false};
#pragma omp parallel num_threads(settings_.threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (Index block = 0; block < blocks_; ++block) {
      if (stop.load(std::memory_order_relaxed)) continue;
      double* support = partial_.data() + block * stride_;
      std::fill_n(support, stride_, 0.0);
      const Index end = std::min(n_, (block + 1) * block_rows_);
      for (Index i = block * block_rows_; i < end; ++i) update_row(i, support);
      if (thread_number() == 0 && poll()) stop.store(true, std::memory_order_relaxed);
    }
#pragma omp for schedule(static)
    for (Index k = 0; k < n_; ++k) {
      double sum = 0;
      for (Index block = 0; block < blocks_; ++block) sum += partial_[as_size(block * stride_ + k)];
      diagonal_.support[as_size(k)] = sum;
    }
  }
  return !stop;
}

Outcome Dense::iterate(const Poll& poll) {
  for (Index t = 0; t < settings_.max_iter; ++t) {
    if (!update_rows(poll)) return {diagonal_.is_exemplar, t, Status::interrupted};
    if (diagonal_.finish_iteration(settings_.damping).settled(t, settings_.convergence_iter))
      return {diagonal_.is_exemplar, t + 1, Status::converged};
  }
  return {diagonal_.is_exemplar, settings_.max_iter, Status::exhausted};
}

template Dense::Dense(Index, const float*, const double*, const Jitter&, const Settings&);
template Dense::Dense(Index, const double*, const double*, const Jitter&, const Settings&);

}  // namespace epruner
