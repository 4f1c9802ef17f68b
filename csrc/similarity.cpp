#include "similarity.hpp"

#include "threads.hpp"

namespace epruner {
namespace {

constexpr Index kSerialBelow = Index{1} << 17;  // similarities; threads cost more than they save

}  // namespace

template <class T>
double Matrix<T>::supports(const Indices& members, double* out, double*) const {
  std::fill_n(out, members.size(), 0.0);
  double most = 0;
  for (Index i : members) {
    const T* s = row(i);
    for (std::size_t j = 0; j < members.size(); ++j)
      if (members[j] != i) out[j] += static_cast<double>(s[members[j]]);
  }
  for (std::size_t j = 0; j < members.size(); ++j)
    if (std::isfinite(out[j])) most = std::max(most, std::fabs(out[j]));
  return most * 1e-12;
}

template <class T>
double Features<T>::supports(const Indices& members, double* out, double* room) const {
  const auto m = static_cast<double>(members.size());
  double *mean = room, *own = room + d_;
  std::fill_n(mean, d_, 0.0);
  for (Index i : members)
    for (Index c = 0; c < d_; ++c) mean[c] += static_cast<double>(x_[i * d_ + c]) / m;
  double most = 0;
  for (std::size_t j = 0; j < members.size(); ++j) {
    for (Index c = 0; c < d_; ++c) own[c] = static_cast<double>(x_[members[j] * d_ + c]);
    out[j] = -scale_ * m * squared_distance(d_, own, mean);
    most = std::max(most, std::fabs(out[j]));
  }
  return most * 1e-9;
}

template <class T>
void distances_from_dots(Index n, Index d, T* S, const T* X, const T* norms, int threads) {
  threads = n * n < kSerialBelow ? 1 : Team::advisable(threads);
  const T close = std::sqrt(std::numeric_limits<T>::epsilon());
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads)
  for (Index i = 0; i < n; ++i) {
    T* s = S + i * n;
    similarities_from_dots(n, s, norms[i], norms, s);
    for (Index k = 0; k < n; ++k)
      if (!(-s[k] >= close * (norms[i] + norms[k])))
        s[k] = static_cast<T>(0.0 - squared_distance(d, X + i * d, X + k * d));
    s[i] = T(0);
  }
}

template <class T>
void centre(Index n, Index d, const T* X, T* out, T* norms) {
  std::vector<double> sum(as_size(d));
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < d; ++c) sum[as_size(c)] += static_cast<double>(X[i * d + c]);
  std::vector<T> mean(as_size(d));
  for (std::size_t c = 0; c < mean.size(); ++c)
    mean[c] = static_cast<T>(sum[c] / static_cast<double>(n));
  const std::vector<T> origin(as_size(d));
  for (Index i = 0; i < n; ++i) {
    for (Index c = 0; c < d; ++c) out[i * d + c] = X[i * d + c] - mean[as_size(c)];
    norms[i] = static_cast<T>(squared_distance(d, out + i * d, origin.data()));
  }
}

template void centre<float>(Index, Index, const float*, float*, float*);
template void centre<double>(Index, Index, const double*, double*, double*);
template void distances_from_dots<float>(Index, Index, float*, const float*, const float*, int);
template void distances_from_dots<double>(Index, Index, double*, const double*, const double*, int);
template class Matrix<float>;
template class Matrix<double>;
template class Features<float>;
template class Features<double>;

}  // namespace epruner
