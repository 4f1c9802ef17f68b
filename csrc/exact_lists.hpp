// The most similar points of a block of points and of another block that visits it, of which the
// features are at hand for as long.
#pragma once

#include <cmath>
#include <vector>

#include "similarity.hpp"
#include "top_lists.hpp"

namespace epruner {

// A block: features (size, d), whose rows are these points, and squared norms of what is
// multiplied; nullptr where the products are the similarities.
template <class T>
struct Block {
  Index size;
  const T* X;
  const T* norms;
  const Column* points;
};

// Similarities as they are used, by direct difference and with their jitter, so that lists depend
// neither on the rounding of products nor on the order in which blocks meet. Positions count
// through the points of the own block and then those of the visitor.
template <class T>
class ExactLists {
 public:
  // At least the `want` largest similarities of each point among n; visitors are at most so many.
  // `unit` is the relative error of products.
  ExactLists(Block<T> own, Index most_visitors, Index d, Index n, Index want, bool cosine,
             double unit, const Jitter& jitter)
      : own_(own),
        d_(d),
        offset_(cosine ? 1 : 0),
        scale_(cosine ? 0.5 : 1),
        unit_(unit),
        jitter_(jitter),
        lists_(own.size + most_visitors, n - 1, want),
        thresholds_(as_size(own.size + most_visitors), minus_infinity<T>) {}

  // Meet another block, whose lists begin with these thresholds.
  void receive(Block<T> visitor, const double* thresholds) {
    visitor_ = visitor;
    for (Index q = 0; q < visitor.size; ++q) start_at(own_.size + q, thresholds[q]);
  }

  // What products tell is looked at from here on: some less than what is listed from.
  T threshold(Index position) const { return thresholds_[as_size(position)]; }
  void start_at(Index position, double threshold) {
    lists_.start_at(position, threshold);
    lower(position);
  }
  void prefetch(Index position, Index other) const {
    lists_.prefetch(position);
    const auto* bytes =
        reinterpret_cast<const char*>(features(position < own_.size ? other : position));
    for (Index at = 0; at < d_ * static_cast<Index>(sizeof(T)); at += 64)
      prefetch_line<false>(bytes + at);
  }
  void push(Index position, Index other, T) {
    const double s = similarity(position, other);
    if (s >= lists_.threshold(position)) add(position, point(other), s);
  }
  // A similarity that was found elsewhere, if it is large enough.
  void add(Index position, Column k, double similarity) {
    if (similarity < lists_.threshold(position)) return;
    const double before = lists_.threshold(position);
    lists_.push(position, k, similarity);
    if (lists_.threshold(position) != before) lower(position);
  }

  const Block<T>& own() const { return own_; }
  const Block<T>& visitor() const { return visitor_; }
  const TopLists<double>& lists() const { return lists_; }  // by position

 private:
  const T* features(Index position) const {
    return position < own_.size ? own_.X + position * d_ : visitor_.X + (position - own_.size) * d_;
  }
  Column point(Index position) const {
    return position < own_.size ? own_.points[position] : visitor_.points[position - own_.size];
  }
  double similarity(Index i, Index k) const {
    return jitter_(offset_ - scale_ * squared_distance(d_, features(i), features(k)), point(i),
                   point(k));
  }
  void lower(Index position) {
    const double s = lists_.threshold(position);
    T& lowered = thresholds_[as_size(position)];
    lowered = minus_infinity<T>;
    if (std::isinf(s)) return;
    const Block<T>& block = position < own_.size ? own_ : visitor_;
    const double norm =
        block.norms ? static_cast<double>(
                          block.norms[position < own_.size ? position : position - own_.size])
                    : 1.0;
    const double error = unit_ * (norm + std::fabs(s)) + (jitter_.ceiling(s) - s);
    lowered = std::nextafter(static_cast<T>(s - error), minus_infinity<T>);
  }

  Block<T> own_;
  Block<T> visitor_{0, nullptr, nullptr, nullptr};
  Index d_;
  double offset_, scale_, unit_;
  Jitter jitter_;
  TopLists<double> lists_;
  std::vector<T> thresholds_;
};

}  // namespace epruner
