#include "candidate_list.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace epruner {
namespace {

constexpr Index kRankBelow = 64;  // candidates that are ranked and not sorted
constexpr Index kMovesEach = 8;   // before a sort is begun again
constexpr std::size_t kLeastChunk = std::size_t{1} << 11,
                      kMostChunk = std::size_t{1} << 18;  // units
constexpr std::size_t kSizesPerOctave = 4;

// Order candidates by descending similarity, equal ones as they are.
void sort_descending(NewCandidates& found) {
  if (found.size <= kRankBelow) {
    descending_ranks(found.size, found.s.data(), found.ends.data());
    for (std::size_t e = 0; e < as_size(found.size); ++e)
      found.order[as_size(found.ends[e])] = static_cast<Column>(e);
    return;
  }
  // The candidates of a row spread over their span: put into as many bins as there are of them,
  // they are nearly in order, and insertion ends it. Should they not be, it is cut short.
  const auto size = as_size(found.size);
  const auto [least, most] = std::minmax_element(found.s.begin(), found.s.begin() + found.size);
  const double high = *most, scale = static_cast<double>(found.size - 1) / (high - *least);
  const bool spread = scale > 0 && std::isfinite(scale);
  const auto bin = [&](double s) { return spread ? as_size((high - s) * scale) : std::size_t{0}; };
  std::fill_n(found.ends.begin(), size + 1, Column{0});
  for (std::size_t e = 0; e < size; ++e) ++found.ends[bin(found.s[e]) + 1];
  std::partial_sum(found.ends.begin(), found.ends.begin() + found.size, found.ends.begin());
  for (std::size_t e = 0; e < size; ++e)
    found.order[as_size(found.ends[bin(found.s[e])]++)] = static_cast<Column>(e);
  const auto before = [&](Column x, Column y) { return found.s[as_size(x)] > found.s[as_size(y)]; };
  Index moves = kMovesEach * found.size;
  for (std::size_t e = 1; e < size && moves > 0; ++e) {
    const Column own = found.order[e];
    std::size_t to = e;
    for (; to > 0 && before(own, found.order[to - 1]); --to, --moves)
      found.order[to] = found.order[to - 1];
    found.order[to] = own;
  }
  if (moves <= 0) {
    std::iota(found.order.begin(), found.order.begin() + found.size, Column{0});
    std::stable_sort(found.order.begin(), found.order.begin() + found.size, before);
  }
}

}  // namespace

std::byte* Arena::take(std::size_t& bytes) {
  const std::size_t least = (bytes + sizeof(Unit) - 1) / sizeof(Unit);
  const std::size_t step = std::max<std::size_t>(1, std::bit_floor(least) / kSizesPerOctave);
  const std::size_t units = (least + step - 1) / step * step;
  bytes = units * sizeof(Unit);
  if (const auto found = returned_.find(bytes);
      found != returned_.end() && !found->second.empty()) {
    std::byte* own = found->second.back();
    found->second.pop_back();
    return own;
  }
  if (units > left_) {
    const std::size_t chunk = std::max(units, std::clamp(taken_, kLeastChunk, kMostChunk));
    chunks_.emplace_back(new Unit[chunk]);
    next_ = chunks_.back().get();
    left_ = chunk;
  }
  std::byte* own = next_->bytes;
  next_ += units;
  left_ -= units;
  taken_ += units;
  return own;
}

void Arena::give_back(std::byte* memory, std::size_t bytes) {
  if (bytes > 0) returned_[bytes].push_back(memory);
}

NewCandidates::NewCandidates(Index room)
    : s(as_size(room + 3)), column(as_size(room)), order(as_size(room)), ends(as_size(room + 1)) {}

// Active and inactive blocks lie together, the active ones first. What memory there is beyond the
// need is for inactive ones.
void CandidateList::make_room(Index n_active_blocks, Index n_candidates, Arena& arena) {
  const Index needed = n_candidates / CandidateBlock::width + 2;  // one stays empty
  if (n_active_blocks <= active_room_ && needed <= inactive_room_) return;
  const Index active_room = n_active_blocks > active_room_
                                ? std::max<Index>(n_active_blocks, 2 * active_room_)
                                : active_room_;
  const std::size_t active_bytes = as_size(active_room) * sizeof(ActiveBlock);
  std::size_t bytes = active_bytes + as_size(needed) * sizeof(CandidateBlock);
  std::byte* memory = arena.take(bytes);
  const auto inactive_room = static_cast<Index>((bytes - active_bytes) / sizeof(CandidateBlock));
  auto* new_active = reinterpret_cast<ActiveBlock*>(memory);
  auto* new_inactive = reinterpret_cast<CandidateBlock*>(new_active + active_room);
  ActiveBlock no_active;
  std::fill_n(no_active.s, ActiveBlock::width, minus_infinity<double>);
  std::fill_n(no_active.r, ActiveBlock::width, minus_infinity<double>);
  std::fill_n(no_active.a, ActiveBlock::width, minus_infinity<double>);
  std::fill_n(no_active.column, ActiveBlock::width, Column{0});
  std::fill_n(std::copy_n(active, active_room_, new_active), active_room - active_room_, no_active);
  CandidateBlock no_inactive;
  std::fill_n(no_inactive.s, CandidateBlock::width, minus_infinity<double>);
  std::fill_n(no_inactive.a, CandidateBlock::width, minus_infinity<double>);
  std::fill_n(no_inactive.column, CandidateBlock::width, Column{0});
  const Index kept = std::min<Index>(inactive_room, inactive_room_);  // beyond, nothing is in use
  std::fill_n(std::copy_n(inactive, kept, new_inactive), inactive_room - kept, no_inactive);
  arena.give_back(reinterpret_cast<std::byte*>(active), bytes_);
  active = new_active;
  inactive = new_inactive;
  bytes_ = bytes;
  active_room_ = static_cast<std::int32_t>(active_room);
  inactive_room_ = static_cast<std::int32_t>(inactive_room);
}

void CandidateList::append(NewCandidates& found, const double* availability, Arena& arena) {
  make_room(1, size() + found.size, arena);  // reset() may make all of them inactive
  sort_descending(found);
  for (Index e = 0; e < found.size; ++e) {
    const auto from = as_size(found.order[as_size(e)]);
    const Column k = found.column[from];
    put(n_inactive + e, found.s[from],
        n_inactive + e < n_stored() ? availability[k] : minus_infinity<double>, k);
  }
  n_inactive += static_cast<std::int32_t>(found.size);
}

void CandidateList::store_availability(Index count, const double* availability) {
  const Index first = n_stored();
  if (count <= first) return;
  n_stored_blocks =
      static_cast<std::int32_t>((count + CandidateBlock::width - 1) / CandidateBlock::width);
  for (Index e = first; e < std::min<Index>(n_inactive, n_stored()); ++e)
    a(e) = availability[column(e)];
}

Index CandidateList::find(double maximum, const double* availability) const {
  Index e = 0;
  while ((e < n_stored() ? a(e) : availability[column(e)]) + s(e) != maximum) ++e;
  return e;
}

bool CandidateList::has_active(Column k) const {
  for (Index e = 0; e < n_active; ++e)
    if (active[e / ActiveBlock::width].column[e % ActiveBlock::width] == k) return true;
  return false;
}

Index CandidateList::inactive_at(Column k) const {
  Index e = 0;
  while (e < n_inactive && column(e) != k) ++e;
  return e;
}

void CandidateList::add_active(double similarity, double r, double a, Column k, Arena& arena) {
  make_room(n_active / ActiveBlock::width + 1, size(), arena);
  ActiveBlock& block = active[n_active / ActiveBlock::width];
  const Index place = n_active % ActiveBlock::width;
  block.s[place] = similarity;
  block.r[place] = r;
  block.a[place] = a;
  block.column[place] = k;
  ++n_active;
}

void CandidateList::activate(Index e, double r, const double* availability, Arena& arena) {
  const auto availability_of = [&](Index q) {
    return q < n_stored() ? a(q) : availability[column(q)];
  };
  add_active(s(e), r, availability_of(e), column(e), arena);
  if (e < n_positive) --n_positive;
  for (--n_inactive; e < n_inactive; ++e)
    put(e, s(e + 1), e < n_stored() ? availability_of(e + 1) : minus_infinity<double>,
        column(e + 1));
  put(n_inactive, minus_infinity<double>, minus_infinity<double>, 0);
}

void CandidateList::save(Saved& saved_active, Saved& saved_inactive) const {
  for (Index e = 0; e < n_active; ++e) {
    const ActiveBlock& block = active[e / ActiveBlock::width];
    const Index place = e % ActiveBlock::width;
    saved_active.s.push_back(block.s[place]);
    saved_active.r.push_back(block.r[place]);
    saved_active.a.push_back(block.a[place]);
    saved_active.column.push_back(block.column[place]);
  }
  for (Index e = 0; e < n_inactive; ++e) {
    saved_inactive.s.push_back(s(e));
    saved_inactive.a.push_back(a(e));
    saved_inactive.column.push_back(column(e));
  }
}

void CandidateList::restore(Index active_count, const Saved& saved_active, std::size_t active_from,
                            Index inactive_count, const Saved& saved_inactive,
                            std::size_t inactive_from, Arena& arena) {
  make_room(active_count / ActiveBlock::width + 1, active_count + inactive_count, arena);
  for (Index e = 0; e < active_count; ++e) {
    const std::size_t from = active_from + as_size(e);
    add_active(saved_active.s[from], saved_active.r[from], saved_active.a[from],
               saved_active.column[from], arena);
  }
  for (Index e = 0; e < inactive_count; ++e) {
    const std::size_t from = inactive_from + as_size(e);
    put(e, saved_inactive.s[from], saved_inactive.a[from], saved_inactive.column[from]);
  }
  n_inactive = static_cast<std::int32_t>(inactive_count);
}

void CandidateList::reset(double least) {
  for (Index e = 0; e < std::min<Index>(n_inactive, n_stored()); ++e) a(e) = minus_infinity<double>;
  n_stored_blocks = n_positive = 0;
  for (; n_active > 0; --n_active) {
    ActiveBlock& block = active[(n_active - 1) / ActiveBlock::width];
    const Index place = (n_active - 1) % ActiveBlock::width;
    if (block.s[place] >= least) {
      Index e = n_inactive++;
      for (; e > 0 && s(e - 1) < block.s[place]; --e)
        put(e, s(e - 1), minus_infinity<double>, column(e - 1));
      put(e, block.s[place], minus_infinity<double>, block.column[place]);
    }
    block.s[place] = block.r[place] = block.a[place] = minus_infinity<double>;
    block.column[place] = 0;
  }
}

}  // namespace epruner
