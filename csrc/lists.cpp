#include "lists.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace epruner {
namespace {

constexpr Index kRankBelow = 64;  // candidates that are ranked and not sorted
constexpr Index kMovesEach = 8;   // before a sort is begun again
constexpr std::size_t kLeastChunk = std::size_t{1} << 11,
                      kMostChunk = std::size_t{1} << 18;  // units

// Order candidates by descending similarity, equal ones as they are.
void sort_descending(Found& found) {
  if (found.size <= kRankBelow) {
    descending_ranks(found.size, found.s.data(), found.ends.data());
    for (std::size_t e = 0; e < static_cast<std::size_t>(found.size); ++e)
      found.order[static_cast<std::size_t>(found.ends[e])] = static_cast<Column>(e);
    return;
  }
  // The candidates of a row spread over their span: put into as many bins as there are of them,
  // they are nearly in order, and insertion ends it. Should they not be, it is cut short.
  const auto size = static_cast<std::size_t>(found.size);
  const auto [least, most] = std::minmax_element(found.s.begin(), found.s.begin() + found.size);
  const double high = *most, scale = static_cast<double>(found.size - 1) / (high - *least);
  const bool spread = scale > 0 && std::isfinite(scale);
  const auto bin = [&](double s) {
    return spread ? static_cast<std::size_t>((high - s) * scale) : std::size_t{0};
  };
  std::fill_n(found.ends.begin(), size + 1, Column{0});
  for (std::size_t e = 0; e < size; ++e) ++found.ends[bin(found.s[e]) + 1];
  std::partial_sum(found.ends.begin(), found.ends.begin() + found.size, found.ends.begin());
  for (std::size_t e = 0; e < size; ++e)
    found.order[static_cast<std::size_t>(found.ends[bin(found.s[e])]++)] = static_cast<Column>(e);
  const auto before = [&](Column x, Column y) {
    return found.s[static_cast<std::size_t>(x)] > found.s[static_cast<std::size_t>(y)];
  };
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

std::byte* Arena::take(std::size_t bytes) {
  const std::size_t units = (bytes + sizeof(Unit) - 1) / sizeof(Unit);
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

Found::Found(Index room)
    : s(static_cast<std::size_t>(room + 3)),
      column(static_cast<std::size_t>(room)),
      order(static_cast<std::size_t>(room)),
      ends(static_cast<std::size_t>(room + 1)) {}

// Peaks and octets lie together, the peaks first.
void List::make_room(Index groups, Index entries, Arena& arena) {
  const Index count = entries / Octet::width + 2;  // one stays empty
  if (groups <= peak_room_ && count <= room_) return;
  groups = groups > peak_room_ ? std::max<Index>(groups, 2 * peak_room_) : peak_room_;
  const Index octet_count = std::max<Index>(count, room_);
  std::byte* block = arena.take(static_cast<std::size_t>(groups) * sizeof(Peaks) +
                                static_cast<std::size_t>(octet_count) * sizeof(Octet));
  auto* new_peaks = reinterpret_cast<Peaks*>(block);
  auto* new_octets = reinterpret_cast<Octet*>(new_peaks + groups);
  Peaks no_peaks;
  std::fill_n(no_peaks.s, Peaks::width, minus_infinity<double>);
  std::fill_n(no_peaks.r, Peaks::width, minus_infinity<double>);
  std::fill_n(no_peaks.a, Peaks::width, minus_infinity<double>);
  std::fill_n(no_peaks.column, Peaks::width, Column{0});
  std::fill_n(std::copy_n(peaks, peak_room_, new_peaks), groups - peak_room_, no_peaks);
  Octet nobody;
  std::fill_n(nobody.s, Octet::width, minus_infinity<double>);
  std::fill_n(nobody.a, Octet::width, minus_infinity<double>);
  std::fill_n(nobody.column, Octet::width, Column{0});
  std::fill_n(std::copy_n(octets, room_, new_octets), octet_count - room_, nobody);
  peaks = new_peaks;
  octets = new_octets;
  peak_room_ = static_cast<std::int32_t>(groups);
  room_ = static_cast<std::int32_t>(octet_count);
}

void List::append(Found& found, const double* availability, Arena& arena) {
  make_room(1, known() + found.size, arena);  // peaks may come back
  sort_descending(found);
  for (Index e = 0; e < found.size; ++e) {
    const auto from = static_cast<std::size_t>(found.order[static_cast<std::size_t>(e)]);
    const Column k = found.column[from];
    put(size + e, found.s[from], size + e < holding() ? availability[k] : minus_infinity<double>,
        k);
  }
  size += static_cast<std::int32_t>(found.size);
}

void List::back(Index count, const double* availability) {
  const Index first = holding();
  backed = std::max(backed, static_cast<std::int32_t>((count + Octet::width - 1) / Octet::width));
  for (Index e = first; e < std::min<Index>(size, holding()); ++e) a(e) = availability[column(e)];
}

void List::promote(double maximum, const double* availability, ClosedForm r, Arena& arena) {
  const auto availability_of = [&](Index e) {
    return e < holding() ? a(e) : availability[column(e)];
  };
  Index e = 0;
  while (availability_of(e) + s(e) != maximum) ++e;
  make_room(peak_count / Peaks::width + 1, known(), arena);
  Peaks& group = peaks[peak_count / Peaks::width];
  const Index place = peak_count % Peaks::width;
  group.s[place] = s(e);
  group.r[place] = r.grown * s(e) - r.mu;
  group.a[place] = availability_of(e);
  group.column[place] = column(e);
  ++peak_count;

  for (--size; e < size; ++e)
    put(e, s(e + 1), e < holding() ? availability_of(e + 1) : minus_infinity<double>,
        column(e + 1));
  put(size, minus_infinity<double>, minus_infinity<double>, 0);
}

void List::reset() {
  for (Index e = 0; e < std::min<Index>(size, holding()); ++e) a(e) = minus_infinity<double>;
  backed = 0;
  for (; peak_count > 0; --peak_count) {
    Peaks& group = peaks[(peak_count - 1) / Peaks::width];
    const Index place = (peak_count - 1) % Peaks::width;
    Index e = size++;
    for (; e > 0 && s(e - 1) < group.s[place]; --e)
      put(e, s(e - 1), minus_infinity<double>, column(e - 1));
    put(e, group.s[place], minus_infinity<double>, group.column[place]);
    group.s[place] = group.r[place] = group.a[place] = minus_infinity<double>;
    group.column[place] = 0;
  }
}

}  // namespace epruner
