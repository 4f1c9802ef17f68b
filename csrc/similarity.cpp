#include "similarity.hpp"

namespace epruner {

template <class T>
double Matrix<T>::supports(const Indices& members, double* out) const {
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
double Features<T>::supports(const Indices& members, double* out) const {
  const auto m = static_cast<double>(members.size());
  std::vector<double> mean(static_cast<std::size_t>(d_)), own(static_cast<std::size_t>(d_));
  for (Index i : members)
    for (Index c = 0; c < d_; ++c)
      mean[static_cast<std::size_t>(c)] += static_cast<double>(x_[i * d_ + c]) / m;
  double most = 0;
  for (std::size_t j = 0; j < members.size(); ++j) {
    for (Index c = 0; c < d_; ++c)
      own[static_cast<std::size_t>(c)] = static_cast<double>(x_[members[j] * d_ + c]);
    out[j] = -scale_ * m * squared_distance(d_, own.data(), mean.data());
    most = std::max(most, std::fabs(out[j]));
  }
  return most * 1e-9;
}

template class Matrix<float>;
template class Matrix<double>;
template class Features<float>;
template class Features<double>;

}  // namespace epruner
