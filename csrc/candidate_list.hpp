// The candidates of a row, in memory that grows without moving what it holds.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include "row_kernels.hpp"

namespace epruner {

// Memory of one thread's lists, in chunks that never move: a list that grows is copied, no other,
// and what it leaves is for the next that grows to that size.
class Arena {
 public:
  // At least so many bytes, aligned for vectors. Sizes are few: `bytes` becomes what there is.
  std::byte* take(std::size_t& bytes);
  // Take back what any arena gave, with the size that it told.
  void give_back(std::byte* memory, std::size_t bytes);

 private:
  struct alignas(32) Unit {
    std::byte bytes[32];
  };
  std::vector<std::unique_ptr<Unit[]>> chunks_;
  Unit* next_ = nullptr;
  std::size_t left_ = 0, taken_ = 0;                         // units
  std::map<std::size_t, std::vector<std::byte*>> returned_;  // by size
};

// Candidates on their way to a list.
struct NewCandidates {
  std::vector<double> s;
  std::vector<Column> column;
  Index size = 0;

  std::vector<Column> order, ends;  // room to sort in

  explicit NewCandidates(Index room);
  void add(double similarity, Column k) {
    s[as_size(size)] = similarity;
    column[as_size(size++)] = k;
  }
};

class CandidateList : public CandidateRow {
 public:
  Index size() const { return n_active + n_inactive; }

  // Append candidates, all less similar than those listed. Their A is their columns'
  // `availability`, here and below.
  void append(NewCandidates& found, const double* availability, Arena& arena);
  // Have at least the first `count` store A.
  void store_availability(Index count, const double* availability);
  // The first inactive candidate with A + S = `maximum`, which must be there.
  Index find(double maximum, const double* availability) const;
  // Make inactive candidate `e` active with this R.
  void activate(Index e, double r, const double* availability, Arena& arena);
  // Hold an active candidate that is not listed, not even among the inactive.
  void add_active(double similarity, double r, double a, Column k, Arena& arena);
  // Candidates as they lie, of one kind; entries of all rows follow each other.
  struct Saved {
    std::vector<double> s, r, a;
    std::vector<Column> column;
  };
  void save(Saved& saved_active, Saved& saved_inactive) const;
  // Have so many candidates, saved from these places on; the row must be new.
  void restore(Index active_count, const Saved& saved_active, std::size_t active_from,
               Index inactive_count, const Saved& saved_inactive, std::size_t inactive_from,
               Arena& arena);
  // Forget all messages, and the candidates below `least`.
  void reset(double least);

  bool has_active(Column k) const;
  // The place of a column among the inactive; `n_inactive` if it is not one of them.
  Index inactive_at(Column k) const;
  // visit(column) for every candidate.
  template <class Visit>
  void each_column(const Visit& visit) const {
    for (Index e = 0; e < n_inactive; ++e) visit(column(e));
    for (Index e = 0; e < n_active; ++e)
      visit(active[e / ActiveBlock::width].column[e % ActiveBlock::width]);
  }
  // The most similar candidate over `from` that is one of those `wanted(column)`; -1 for none.
  template <class Wanted>
  Column best(double from, const Wanted& wanted) const {
    Column found = -1;
    for (Index e = 0; e < n_active; ++e) {
      const ActiveBlock& block = active[e / ActiveBlock::width];
      const Index place = e % ActiveBlock::width;
      if (block.s[place] > from && wanted(block.column[place])) {
        from = block.s[place];
        found = block.column[place];
      }
    }
    for (Index e = 0; e < n_inactive && s(e) > from; ++e)
      if (wanted(column(e))) return column(e);
    return found;
  }

 private:
  void make_room(Index n_active_blocks, Index n_candidates, Arena& arena);
  void put(Index e, double similarity, double availability, Column k) {
    s(e) = similarity;
    a(e) = availability;
    column(e) = k;
  }

  std::int32_t active_room_ = 0, inactive_room_ = 0;  // blocks
  std::size_t bytes_ = 0;
};

}  // namespace epruner
