#include "row_medians.hpp"

#include <algorithm>
#include <cmath>

#include "quantiles.hpp"

namespace epruner {
namespace {

constexpr double kDeviations = 7;  // of the median's rank, from the window's one end to the other
constexpr Index kLeastWindow = 16;
constexpr Index kFirstLimit = 128;
constexpr int kInterpolations = 4;

// How many of the first `seen` of n values the window around their median holds.
Index window_size(Index seen, Index n) {
  const double t = static_cast<double>(seen), left = 1 - t / static_cast<double>(n);
  return kLeastWindow + static_cast<Index>(kDeviations / 2 * std::sqrt(t * std::max(0.0, left)));
}

}  // namespace

template <class T>
Index RowMedians<T>::room(Index n) {
  return std::min(n, window_size(n / 2, n) * 3 / 2);
}

template <class T>
RowMedians<T>::RowMedians(Index rows, Index n)
    : n_(n), room_(room(n)), rows_(as_size(rows)), values_(new T[as_size(rows * room_)]) {
  for (Row& row : rows_) row.limit = std::min(room_, kFirstLimit);
}

// A number that about `rank` of the kept values lie below. They spread evenly over a window that
// has narrowed before, so a straight line nearly tells it.
template <class T>
T RowMedians<T>::bound_at(const Row& row, T* values, Index rank) {
  auto [low, high] = row.window;
  if (low == minus_infinity<T>) low = *std::min_element(values, values + row.size);
  if (high == infinity) high = *std::max_element(values, values + row.size);
  Index first = 0, last = row.size;  // how many lie below low, and below high
  for (int step = 0; step < kInterpolations && first < last; ++step) {
    const T share = static_cast<T>(rank - first) / static_cast<T>(last - first);
    const T guess = std::clamp(low + (high - low) * share, low, high);
    const Index below = count_between(row.size, values, minus_infinity<T>, guess);
    if (std::abs(below - rank) <= row.size / 64) return guess;
    (below < rank ? low : high) = guess;
    (below < rank ? first : last) = below;
  }
  std::nth_element(values, values + rank, values + row.size);
  return values[rank];
}

template <class T>
void RowMedians<T>::add(Index r, Index seen, Index below, const T* inside, Index size) {
  Row& row = rows_[as_size(r)];
  T* values = values_.get() + r * room_;
  row.seen += seen;
  row.below += below;
  while (size > 0) {
    if (row.size >= row.limit) narrow(row, values, inside, size);
    const Index next = std::min(size, row.limit - row.size);
    const Window<T> window = row.window;
    for (Index e = 0; e < next; ++e) {
      const T value = inside[e];
      row.below += value < window.low;
      if (!row.one_value) values[row.size] = value;
      row.size += window.holds(value);
    }
    inside += next;
    size -= next;
  }
}

// Of the values seen, rest[0..left) are still to be added: of those in the window, what is here is
// a part that stands for the whole.
template <class T>
void RowMedians<T>::narrow(Row& row, T* values, const T* rest, Index left) {
  const Index below = row.below + count_between(left, rest, minus_infinity<T>, row.window.low);
  const Index later = count_between(left, rest, row.window.low, row.window.above);
  const double share = static_cast<double>(row.size) / static_cast<double>(row.size + later);
  const auto part = [&](Index count) {
    return static_cast<Index>(share * static_cast<double>(count));
  };
  const Index middle = part(row.seen / 2 - below), half = window_size(part(row.seen), n_) / 2;
  Window<T> next = row.window;
  if (middle - half > 0 && middle - half < row.size)
    next.low = bound_at(row, values, middle - half);
  if (middle + half > 0 && middle + half < row.size)
    next.above = bound_at(row, values, middle + half);
  const Index inside = count_between(row.size, values, next.low, next.above);
  if (middle < 0 || middle >= row.size) {
    next = {infinity, infinity};  // lost: no value will be looked at again
  } else if (inside > room_ * 7 / 8) {
    std::nth_element(values, values + middle, values + row.size);  // most values are equal
    next = {values[middle], std::nextafter(values[middle], infinity)};
    row.one_value = true;
    row.limit = std::numeric_limits<Index>::max();
  } else {
    row.limit = std::min(room_, 2 * inside + kLeastWindow);
  }
  row.below += count_between(row.size, values, minus_infinity<T>, next.low);
  row.window = next;
  Index kept = 0;
  for (Index e = 0; e < row.size; ++e) {
    const T value = values[e];
    values[kept] = value;
    kept += next.holds(value);
  }
  row.size = kept;
}

template <class T>
T RowMedians<T>::median(Index r) {
  const Row& row = rows_[as_size(r)];
  const Index low = (n_ - 1) / 2 - row.below, high = n_ / 2 - row.below;
  if (low < 0 || high >= row.size) return std::numeric_limits<T>::quiet_NaN();
  if (row.one_value) return row.window.low;
  return select_both(values_.get() + r * room_, row.size, low, high).middle();
}

template class RowMedians<float>;
template class RowMedians<double>;

}  // namespace epruner
