// The candidates of every row, in memory that grows without moving what it holds.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "rows.hpp"

namespace epruner {

// Memory of one thread's lists, in chunks that never move: a list that grows is copied, no other.
class Arena {
 public:
  std::byte* take(std::size_t bytes);  // aligned for vectors

 private:
  struct alignas(32) Unit {
    std::byte bytes[32];
  };
  std::vector<std::unique_ptr<Unit[]>> chunks_;
  Unit* next_ = nullptr;
  std::size_t left_ = 0, taken_ = 0;  // units
};

// Candidates on their way to a list.
struct Found {
  std::vector<double> s;
  std::vector<Column> column;
  Index size = 0;

  std::vector<Column> order, ends;  // room to sort in

  explicit Found(Index room);
  void add(double similarity, Column k) {
    s[static_cast<std::size_t>(size)] = similarity;
    column[static_cast<std::size_t>(size++)] = k;
  }
};

class List : public ListedRow {
 public:
  Index known() const { return size + peak_count; }

  // Append candidates, all less similar than those listed. Their A is their columns'
  // `availability`, here and below.
  void append(Found& found, const double* availability, Arena& arena);
  // Have at least the first `count` hold A.
  void back(Index count, const double* availability);
  // Make the candidate with A + S = `maximum`, which is no peak yet, one.
  void promote(double maximum, const double* availability, ClosedForm r, Arena& arena);
  // Forget all messages.
  void reset();

  // visit(column) for every candidate.
  template <class Visit>
  void each_column(const Visit& visit) const {
    for (Index e = 0; e < size; ++e) visit(column(e));
    for (Index e = 0; e < peak_count; ++e) visit(peaks[e / Peaks::width].column[e % Peaks::width]);
  }
  // The most similar candidate over `from` that is one of those `wanted(column)`; -1 for none.
  template <class Wanted>
  Column best(double from, const Wanted& wanted) const {
    Column found = -1;
    for (Index e = 0; e < peak_count; ++e) {
      const Peaks& group = peaks[e / Peaks::width];
      const Index place = e % Peaks::width;
      if (group.s[place] > from && wanted(group.column[place])) {
        from = group.s[place];
        found = group.column[place];
      }
    }
    for (Index e = 0; e < size && s(e) > from; ++e)
      if (wanted(column(e))) return column(e);
    return found;
  }

 private:
  void make_room(Index groups, Index entries, Arena& arena);
  void put(Index e, double similarity, double availability, Column k) {
    s(e) = similarity;
    a(e) = availability;
    column(e) = k;
  }
  Index holding() const { return backed * Octet::width; }  // from here on, A is not held

  std::int32_t peak_room_ = 0, room_ = 0;  // groups, octets
};

}  // namespace epruner
