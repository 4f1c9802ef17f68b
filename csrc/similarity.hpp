// Where similarities come from: a matrix in memory, or features.
#pragma once

#include <cmath>
#include <stdexcept>
#include <unordered_map>

#include "compiler.hpp"
#include "messages.hpp"

namespace epruner {

using Indices = std::vector<Index>;

inline std::invalid_argument not_similarities() {
  return std::invalid_argument("S holds NaN or +inf; use -inf for pairs that must not be linked");
}

// Similarities (n, n) in memory.
template <class T>
class Matrix {
 public:
  Matrix(Index n, const T* S) : n_(n), s_(S) {}
  Index size() const { return n_; }
  const T* row(Index i) const { return s_ + i * n_; }
  double operator()(Index i, Index k) const { return static_cast<double>(s_[i * n_ + k]); }

  // out[j]: the sum of the similarities of all other members to members[j], up to the slack that
  // is returned. `room` has place for room() numbers: this runs in parallel loops, where nothing
  // may be allocated.
  double supports(const Indices& members, double* out, double* room) const;
  std::size_t room() const { return 0; }

 private:
  Index n_;
  const T* s_;
};

// Similarities offset - scale * ||x_i - x_k||² of the rows of X (n, d), by direct difference in
// float64. Euclidean: offset 0, scale 1. Cosine, with rows of length 1: offset 1, scale 1/2.
template <class T>
class Features {
 public:
  Features(Index n, Index d, const T* X, bool cosine)
      : n_(n), d_(d), x_(X), offset_(cosine ? 1 : 0), scale_(cosine ? 0.5 : 1) {}
  Index size() const { return n_; }
  // Bring the features of point k near.
  void prefetch(Index k) const {
    const auto* bytes = reinterpret_cast<const char*>(x_ + k * d_);
    for (Index at = 0; at < d_ * static_cast<Index>(sizeof(T)); at += 64)
      prefetch_line<false>(bytes + at);
  }
  double operator()(Index i, Index k) const {
    return offset_ - scale_ * squared_distance(d_, x_ + i * d_, x_ + k * d_);
  }
  // As for Matrix, from the members' mean: the sum of squared distances to a point is m times its
  // squared distance to the mean plus a constant, which is left out.
  double supports(const Indices& members, double* out, double* room) const;
  std::size_t room() const { return 2 * as_size(d_); }

 private:
  Index n_, d_;
  const T* x_;
  double offset_, scale_;
};

// Similarities of points from `first` on, whose features are at hand, to a few others that are
// told.
template <class T>
class KnownPairs {
 public:
  // Features (·, d) of the points, and as for Features.
  KnownPairs(Index first, Index d, const T* X, bool cosine)
      : first_(first), d_(d), x_(X), offset_(cosine ? 1 : 0), scale_(cosine ? 0.5 : 1) {}

  // Add the features (·, d) of others.
  void tell(const std::vector<Column>& points, const T* Y) {
    for (Column k : points) place_.emplace(k, static_cast<Index>(place_.size()));
    told_.insert(told_.end(), Y, Y + static_cast<Index>(points.size()) * d_);
  }
  void forget() {
    place_.clear();
    told_.clear();
  }
  // out[q] <- the similarity of point i to columns[q], which has been told.
  auto source() const {
    return [this](Index i, const Column* columns, Index count, double* out) {
      for (Index q = 0; q < count; ++q) out[q] = to_told(i, place_.at(columns[q]));
    };
  }
  // The similarity of point i to the q-th that has been told.
  double to_told(Index i, Index q) const { return between(i, told_.data() + q * d_); }
  // That to features y (d).
  double between(Index i, const T* y) const {
    return offset_ - scale_ * squared_distance(d_, x_ + (i - first_) * d_, y);
  }

 private:
  Index first_, d_;
  const T* x_;
  double offset_, scale_;
  std::unordered_map<Column, Index> place_;
  std::vector<T> told_;
};

// Turn S = X~ X~^T of the centred features X~ into -||x_i - x_k||²: from the products where they
// tell, by direct difference where points are so close that the products cancel. `norms` are those
// of X~. Symmetric with a zero diagonal.
template <class T>
void distances_from_dots(Index n, Index d, T* S, const T* X, const T* norms, int threads);

// out <- X (n, d) minus its columns' means, in X's precision; norms[i] <- the squared length of row
// i.
template <class T>
void centre(Index n, Index d, const T* X, T* out, T* norms);

}  // namespace epruner
