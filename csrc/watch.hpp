// Order statistics of values that are seen once, without keeping them all.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "ordered.hpp"
#include "rows.hpp"

namespace epruner {

// Looks out for values in a window that almost surely holds the wanted ranks. Counts them in bins
// where the window spans few numbers, which is exact, or where they are too many to keep, which is
// exact to a bin; keeps them otherwise.
template <class T>
class Watch {
 public:
  // The window is [low, high]; about `expected` values will be in it. Each of `writers` is one
  // thread at a time.
  Watch(T low, T high, Index expected, Index writers);

  // Look at n values; `scratch` has room for as many columns.
  void see(Index writer, Index n, const T* values, Column* scratch);

  // The values at these ranks, from 0, among all that were seen; those next to the window's ends
  // for ranks outside it, none if nothing was in it.
  std::vector<T> at(const std::vector<Index>& ranks) const;

 private:
  struct Seen {
    Index below = 0;
    std::vector<T> inside;
  };
  using Key = std::make_unsigned_t<Ordered<T>>;

  Key distance(T value) const;  // from the window's low end, in numbers

  T low_, above_;  // the window is [low, above)
  int shift_ = 0;  // a bin holds 2^shift numbers
  std::vector<std::atomic<Index>> bins_;
  std::vector<Seen> seen_;
};

extern template class Watch<float>;
extern template class Watch<double>;

}  // namespace epruner
