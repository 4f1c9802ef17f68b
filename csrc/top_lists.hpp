// The most similar points of some points, in lists of bounded length that similarities are pushed
// on as they come.
#pragma once

#include <memory>
#include <vector>

#include "compiler.hpp"
#include "row_kernels.hpp"

namespace epruner {

template <class T>
class TopLists {
 public:
  // A list for each of `rows` points, of at least its `want` largest among `candidates` others.
  TopLists(Index rows, Index candidates, Index want);

  static Index bytes_needed(Index rows, Index candidates, Index want) {
    return rows * (room(candidates, want) * static_cast<Index>(sizeof(T) + sizeof(Column)) +
                   static_cast<Index>(sizeof(Row)));
  }

  // Offer a similarity that is at least threshold(r) to list r. Lists of different rows may be
  // pushed on at the same time.
  void push(Index r, Column column, T similarity) {
    Row& row = rows_[as_size(r)];
    if (row.size == room_) {
      cut(r);
      if (similarity < row.threshold) return;
    }
    const Index at = r * room_ + row.size++;
    values_[as_size(at)] = similarity;
    columns_[as_size(at)] = column;
    row.most = similarity > row.most ? similarity : row.most;
  }

  // Bring the place near where the next similarity of list r goes.
  void prefetch(Index r) const {
    const Index at = r * room_ + rows_[as_size(r)].size;
    prefetch_line<true>(values_.get() + at);
    prefetch_line<true>(columns_.get() + at);
  }

  // Leave out from the start what is below a threshold; the list may then stay shorter.
  void start_at(Index r, T threshold) { rows_[as_size(r)] = {.threshold = threshold}; }

  Index rows() const { return static_cast<Index>(rows_.size()); }
  Index room() const { return room_; }
  // List r: `size(r)` columns in no order. What is not listed is at most `threshold(r)`.
  Index size(Index r) const { return rows_[as_size(r)].size; }
  const Column* columns(Index r) const { return columns_.get() + r * room_; }
  const T* values(Index r) const { return values_.get() + r * room_; }
  T threshold(Index r) const { return rows_[as_size(r)].threshold; }

 private:
  struct Row {
    T threshold = minus_infinity<T>, most = minus_infinity<T>;
    std::int32_t size = 0;
  };
  static Index room(Index candidates, Index want);
  void cut(Index r);

  Index want_, room_;
  std::vector<Row> rows_;
  std::unique_ptr<T[]> values_;        // (rows, room)
  std::unique_ptr<Column[]> columns_;  // (rows, room)
};

}  // namespace epruner
