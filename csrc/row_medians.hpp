// Medians of rows whose values come in random order and are seen once.
#pragma once

#include <memory>
#include <vector>

#include "tile_scan.hpp"

namespace epruner {

// Keeps of every row the values around the median of those seen so far; of the others, only how
// many lie below. That window narrows as the median becomes certain: in random order, the median of
// the first t of n values is off by sqrt(t (1 - t / n)) / 2 ranks, so that room for a few times
// sqrt(n) values suffices. A row that loses its median says so.
template <class T>
class RowMedians {
 public:
  // Medians of `rows` rows of n values each.
  RowMedians(Index rows, Index n);
  static Index bytes_needed(Index rows, Index n) {
    return rows * (room(n) * static_cast<Index>(sizeof(T)) + static_cast<Index>(sizeof(Row)));
  }

  const Window<T>& window(Index r) const { return rows_[as_size(r)].window; }
  // Look at `seen` more values of a row, of which `below` lay below its window and inside[0..size)
  // in it. All rows may be given values at the same time.
  void add(Index r, Index seen, Index below, const T* inside, Index size);
  // The median, once all values have been added; NaN where it was lost.
  T median(Index r);

 private:
  struct Row {
    Window<T> window;
    Index seen = 0, below = 0, size = 0;
    Index limit = 0;         // of the size, from which on the window is narrowed
    bool one_value = false;  // that the window holds; its values are counted and not kept
  };
  static constexpr T infinity = std::numeric_limits<T>::infinity();

  static Index room(Index n);  // for the values of a row
  void narrow(Row& row, T* values, const T* rest, Index left);
  static T bound_at(const Row& row, T* values, Index rank);

  Index n_, room_;
  std::vector<Row> rows_;
  std::unique_ptr<T[]> values_;  // (rows, room)
};

}  // namespace epruner
