#include "top_lists.hpp"

#include <algorithm>
#include <cmath>

namespace epruner {

// A full list is cut back to what is wanted and a little more. Half as much room again keeps the
// threshold close to the wanted rank, so that few similarities are pushed in vain.
template <class T>
Index TopLists<T>::room(Index candidates, Index want) {
  return std::min(candidates, want + want / 2 + 8);
}

template <class T>
TopLists<T>::TopLists(Index rows, Index candidates, Index want)
    : want_(std::min(want, candidates)),
      room_(room(candidates, want_)),
      rows_(as_size(rows)),
      values_(new T[as_size(rows * room_)]),
      columns_(new Column[as_size(rows * room_)]) {}

// Halves the interval of values that holds a threshold; counting is vectorised, which beats a
// selection.
template <class T>
void TopLists<T>::cut(Index r) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  Row& row = rows_[as_size(r)];
  T* values = values_.get() + r * room_;
  Column* columns = columns_.get() + r * room_;
  const Index enough = want_ + want_ / 16;
  T low = row.threshold, high = row.most;  // all reach `low`, fewer than wanted what is over `high`
  if (low == minus_infinity<T>) low = *std::min_element(values, values + room_);
  Index reach = room_;
  while (reach > enough) {
    const T middle = low + (high - low) / 2;
    if (!(middle > low && middle < high)) break;
    const Index count = count_between(room_, values, middle, infinity);
    if (count < want_) {
      high = middle;
    } else {
      low = middle;
      reach = count;
    }
  }
  Index surplus = 0;     // entries equal to the threshold that must go
  if (reach > enough) {  // no number is between: many entries are equal
    if (count_between(room_, values, high, infinity) >= want_) low = high;
    surplus = count_between(room_, values, low, infinity) - want_;
  }
  Index kept = 0;
  for (Index e = 0; e < room_; ++e) {
    const T value = values[e];
    const Index goes = surplus > 0 && value == low;
    surplus -= goes;
    values[kept] = value;
    columns[kept] = columns[e];
    kept += static_cast<Index>(value >= low) - goes;
  }
  row.size = static_cast<std::int32_t>(kept);
  row.threshold = low;
}

template class TopLists<float>;
template class TopLists<double>;

}  // namespace epruner
