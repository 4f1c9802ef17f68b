#include "candidate_selection.hpp"

#include <exception>

namespace epruner {
namespace {

constexpr Index kFirstWant = 16;  // candidates a row starts with

template <class T>
T lowest_finite() {
  return std::numeric_limits<T>::lowest();
}

// A threshold that at least `want` of a row's entries below `below` reach, and not many more; the
// row may hold its own point, which then counts. lowest() if fewer are left, NaN if the row holds
// what is no similarity.
template <class T>
T threshold(Index n, const T* x, Index self, T below, Index want, std::vector<T>& lanes) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  // Twice as many lanes as are wanted: few hold two of the largest entries.
  const Index parts = (2 * want + kLanes<T> - 1) / kLanes<T>;
  lanes.resize(as_size(parts * kLanes<T>));
  Span<T> all{infinity, -infinity, true};
  for (Index p = 0; p < parts; ++p) {
    const Index first = n * p / parts, last = n * (p + 1) / parts;
    const Index within = self >= first && self < last ? self - first : -1;
    const Span<T> span =
        lane_maxima(last - first, within, x + first, below, lanes.data() + p * kLanes<T>);
    all = {std::min(all.least, span.least), std::max(all.most, span.most), all.valid && span.valid};
  }
  if (!all.valid) return std::numeric_limits<T>::quiet_NaN();
  if (n <= 2 * want) return lowest_finite<T>();
  if (all.least > minus_infinity<T>)
    return bisect(parts * kLanes<T>, lanes.data(), all.least, all.most, infinity, want);
  if (count_between(n, x, lowest_finite<T>(), below) <= 2 * want) return lowest_finite<T>();
  const T high = below == infinity ? std::numeric_limits<T>::max() : below;
  return bisect(n, x, lowest_finite<T>(), high, below, want);
}

}  // namespace

CandidateLists::CandidateLists(Index n, Range points, const Jitter& jitter, int threads)
    : n_(n),
      points_(points),
      jitter_(jitter),
      rows_(as_size(points.size())),
      arenas_(as_size(threads)) {}

Index CandidateLists::next_want(Index i) const {
  return std::max<Index>(kFirstWant, (*this)[i].n_inactive);
}

// How far the jittered similarity of a pair may be from the entry `s` of point i's row.
template <class T>
double CandidateLists::uncertainty(Index i, double s, const Refinement<T>& refinement) const {
  return std::isinf(s) ? 0.0 : jitter_.ceiling(s) - s + refinement.error(i, s);
}

// What no unlisted pair of point i exceeds once all entries from `low` up have been looked at.
// Lists keep only what reaches this bound, so that they descend and end where the rest begins.
template <class T>
double CandidateLists::bound(Index i, double low, bool everything,
                             const Refinement<T>& refinement) const {
  return everything ? minus_infinity<double> : low + uncertainty(i, low, refinement);
}

// What is not listed yet and at least `low`. What the last threshold's uncertainty kept off the
// list lies a little over it.
template <class T>
Addition CandidateLists::propose(Index i, const T* x, T low, const Refinement<T>& refinement,
                                 Scratch<T>& scratch) const {
  const Row& row = (*this)[i];
  const auto mark = [&](std::uint8_t value) {
    scratch.listed[as_size(i)] = value;
    row.each_column([&](Column k) { scratch.listed[as_size(k)] = value; });
  };
  const auto over = static_cast<T>(mostly_listed_from(i, refinement));
  const Index found = collect_between(n_, x, low, over, scratch.columns.data());
  mark(1);
  Index count = 0;
  for (Index e = 0; e < found; ++e) {
    const Column k = scratch.columns[as_size(e)];
    scratch.columns[as_size(count)] = k;
    count += !scratch.listed[as_size(k)];
  }
  mark(0);
  const auto below = static_cast<double>(low);
  const double rest = bound(i, below, low == lowest_finite<T>(), refinement);
  return {below, std::min(rest, row.unlisted), count};
}

void CandidateLists::accept(Index i, const Addition& addition, const Column* columns,
                            const double* similarities, const double* availability,
                            NewCandidates& found, Arena& arena) {
  const Jitter::Row noise = jitter_.row(i);
  found.size = 0;
  for (Index e = 0; e < addition.count; ++e) {
    const double s = noise(similarities[e], columns[e]);
    if (s >= addition.unlisted) found.add(s, columns[e]);
  }
  Row& row = (*this)[i];
  row.append(found, availability, arena);
  row.below = addition.below;
  row.unlisted = addition.unlisted;
}

template <class T>
void CandidateLists::extend_to(Index i, const T* x, T low, const Refinement<T>& refinement,
                               const double* availability, Scratch<T>& scratch, Arena& arena) {
  if (static_cast<double>(low) >= (*this)[i].below) return;
  const Addition addition = propose(i, x, low, refinement, scratch);
  for (std::size_t e = 0; e < as_size(addition.count); ++e) {
    const Column k = scratch.columns[e];
    scratch.similarities[e] =
        refinement.exact ? (*refinement.exact)(i, k) : static_cast<double>(x[k]);
  }
  accept(i, addition, scratch.columns.data(), scratch.similarities.data(), availability,
         scratch.found, arena);
}

template <class T>
T CandidateLists::next_threshold(Index i, const T* x, Index want, Scratch<T>& scratch) const {
  return threshold(n_, x, i, static_cast<T>((*this)[i].below), want, scratch.lanes);
}

template <class T>
bool CandidateLists::extend(Index i, const T* x, Index want, const Refinement<T>& refinement,
                            const double* availability, Scratch<T>& scratch, Arena& arena) {
  const Row& row = (*this)[i];
  const Index before = row.size();
  for (; row.size() == before && row.unlisted > minus_infinity<double>; want *= 2) {
    const T low = next_threshold(i, x, want, scratch);
    if (std::isnan(low)) return false;
    extend_to(i, x, low, refinement, availability, scratch, arena);
  }
  return true;
}

void CandidateLists::fill_from_csr(const Index* offsets, const Column* columns,
                                   const double* similarities, const double* availability) {
  NewCandidates found(n_);
  for (Index i = points_.first; i < points_.last; ++i) {
    Row& row = (*this)[i];
    found.size = 0;
    for (Index e = *offsets++; e < *offsets; ++e)
      if (columns[e] != i && similarities[e] > minus_infinity<double>)
        found.add(jitter_(similarities[e], i, columns[e]), columns[e]);
    row.append(found, availability, arenas_[0]);
    row.unlisted = minus_infinity<double>;
  }
}

void CandidateLists::fill_from_lists(const Index* offsets, const Column* columns,
                                     const double* similarities, const double* bounds,
                                     const double* availability) {
  NewCandidates found(n_);
  for (Row& row : rows_) {
    found.size = 0;
    for (Index e = *offsets++; e < *offsets; ++e) found.add(similarities[e], columns[e]);
    row.append(found, availability, arenas_[0]);
    row.below = row.unlisted = *bounds++;
  }
}

template <class T>
void CandidateLists::fill_from_nearest(const Nearest<T>& nearest, const Refinement<T>& refinement,
                                       const double* availability) {
  constexpr Index kLookAhead = 4;  // candidates whose features are on their way
  const TopLists<T>& lists = nearest.lists().lists();
  std::vector<NewCandidates> scratch(arenas_.size(), NewCandidates(lists.room()));
  std::vector<std::exception_ptr> errors(arenas_.size());
#pragma omp parallel for schedule(dynamic, 64) num_threads(static_cast<int>(arenas_.size()))
  for (Index q = 0; q < n_; ++q) {
    const auto own = thread_number();
    NewCandidates& found = scratch[own];
    const Index i = nearest.lists().points()[q];
    Row& row = (*this)[i];
    found.size = 0;
    row.below = static_cast<double>(lists.threshold(q));
    row.unlisted = bound(i, row.below, lists.size(q) == n_ - 1, refinement);
    const Column* columns = lists.columns(q);
    for (Index e = 0; e < lists.size(q); ++e) {
      refinement.exact->prefetch(columns[std::min(e + kLookAhead, lists.size(q) - 1)]);
      const Column k = columns[e];
      const double s = jitter_((*refinement.exact)(i, k), i, k);
      if (s >= row.unlisted) found.add(s, k);
    }
    try {
      row.append(found, availability, arenas_[own]);
    } catch (...) {
      errors[own] = std::current_exception();
    }
  }
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

void CandidateLists::assign(const Indices& position, Indices& labels,
                            [[maybe_unused]] int threads) const {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (Index i = points_.first; i < points_.last; ++i) {
    const Row& row = (*this)[i];
    const auto at = [&](Index k) { return position[as_size(k)]; };
    const Column best = row.best(row.unlisted, [&](Column k) { return at(k) >= 0; });
    const Index none = row.unlisted == minus_infinity<double> ? -1 : kUnassigned;
    labels[as_size(i - points_.first)] = at(i) >= 0 ? at(i) : best >= 0 ? at(best) : none;
  }
}

Index CandidateLists::longest() const {
  Index most = 0;
  for (const Row& row : rows_) most = std::max(most, row.size());
  return most;
}

void CandidateLists::reset() {
  for (Row& row : rows_) row.reset(row.unlisted);
}

#define EPRUNER_INSTANTIATE(T)                                                                \
  template double CandidateLists::uncertainty<T>(Index, double, const Refinement<T>&) const;  \
  template Addition CandidateLists::propose<T>(Index, const T*, T, const Refinement<T>&,      \
                                               Scratch<T>&) const;                            \
  template T CandidateLists::next_threshold<T>(Index, const T*, Index, Scratch<T>&) const;    \
  template bool CandidateLists::extend<T>(Index, const T*, Index, const Refinement<T>&,       \
                                          const double*, Scratch<T>&, Arena&);                \
  template void CandidateLists::extend_to<T>(Index, const T*, T, const Refinement<T>&,        \
                                             const double*, Scratch<T>&, Arena&);             \
  template void CandidateLists::fill_from_nearest<T>(const Nearest<T>&, const Refinement<T>&, \
                                                     const double*);
EPRUNER_INSTANTIATE(float)
EPRUNER_INSTANTIATE(double)

}  // namespace epruner
