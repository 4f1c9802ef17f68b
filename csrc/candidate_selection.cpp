#include "candidate_selection.hpp"

#include <atomic>
#include <memory>
#include <stdexcept>

#include "quantiles.hpp"

namespace epruner {
namespace {

constexpr Index kFirstWant = 16;   // candidates a row starts with
constexpr Index kEagerness = 5;    // times as many as a row has
constexpr Index kRowsAtOnce = 16;  // that a thread takes

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

CandidateLists::CandidateLists(Index n, const Jitter& jitter, int threads)
    : n_(n), jitter_(jitter), rows_(as_size(n)), arenas_(as_size(threads)) {}

// How many more candidates a row gets: as many again as it has, and more if eager; but not so many
// that dense passes would be cheaper.
Index CandidateLists::next_want(const Row& row, bool eager) const {
  const Index known = row.size(), more = eager ? kEagerness * known : known;
  return std::max({kFirstWant, known, std::min(more, n_ / (2 * kCrowdedShare) - known)});
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

// Append the next candidates of point i, whose row is x. False where x holds what is no similarity.
template <class T>
bool CandidateLists::refill_row(Index i, const T* x, const Refinement<T>& refinement,
                                const double* availability, bool eager, Scratch<T>& scratch,
                                Arena& arena) {
  Row& row = rows_[as_size(i)];
  NewCandidates& found = scratch.found;
  // What the last threshold's uncertainty kept off the list lies a little over it.
  const auto below = static_cast<T>(row.below);
  const auto over = static_cast<T>(row.below + 2 * uncertainty(i, row.below, refinement));
  const auto mark = [&](std::uint8_t value) {
    scratch.listed[as_size(i)] = value;
    row.each_column([&](Column k) { scratch.listed[as_size(k)] = value; });
  };
  mark(1);
  T low = below;
  double unlisted = row.unlisted;
  found.size = 0;
  for (Index want = next_want(row, eager); found.size == 0 && low != lowest_finite<T>();
       want *= 2) {
    low = threshold(n_, x, i, below, want, scratch.lanes);
    if (std::isnan(low)) return false;
    unlisted = bound(i, static_cast<double>(low), low == lowest_finite<T>(), refinement);
    const Index count = collect_between(n_, x, low, over, scratch.columns.data());
    for (Index e = 0; e < count; ++e) {
      const Column k = scratch.columns[as_size(e)];
      if (scratch.listed[as_size(k)]) continue;
      const double exact = refinement.exact ? (*refinement.exact)(i, k) : static_cast<double>(x[k]);
      const double s = jitter_(exact, i, k);
      if (s >= unlisted) found.add(s, k);
    }
  }
  mark(0);
  row.append(found, availability, arena);
  row.below = static_cast<double>(low);
  row.unlisted = unlisted;
  return true;
}

template <class T>
void CandidateLists::refill(const Indices& rows, const RowSource<T>& source,
                            const Refinement<T>& refinement, const double* availability, bool eager,
                            Workers& workers, T* medians) {
  const auto count = static_cast<Index>(rows.size());
  std::vector<std::unique_ptr<Scratch<T>>> scratch(arenas_.size());
  std::atomic<bool> invalid{false};
  const auto refill_point = [&](Index q, std::size_t thread) {
    if (!scratch[thread]) scratch[thread] = std::make_unique<Scratch<T>>(n_);
    Scratch<T>& own = *scratch[thread];
    const Index i = rows[as_size(q)];
    const T* x = source.row(q, i, own.row.data());
    if (!refill_row(i, x, refinement, availability, eager, own, arenas_[thread]))
      invalid.store(true, std::memory_order_relaxed);
    if (!medians) return;
    if (x != own.row.data()) std::copy_n(x, n_, own.row.data());
    own.row[as_size(i)] = static_cast<T>((*refinement.exact)(i, i));
    medians[q] = median(own.row.data(), n_, own.columns);
  };
  workers.together(count * n_ >= kSelectTogether, [&] {
    workers.share((count + kRowsAtOnce - 1) / kRowsAtOnce, [&](Index piece, std::size_t thread) {
      const Index first = piece * kRowsAtOnce;
      for (Index q = first; q < std::min(count, first + kRowsAtOnce); ++q) refill_point(q, thread);
    });
    return true;
  });
  if (invalid)
    throw std::invalid_argument("S holds NaN or +inf; use -inf for pairs that must not be linked");
}

void CandidateLists::fill_from_csr(const Index* offsets, const Column* columns,
                                   const double* similarities, const double* availability) {
  NewCandidates found(n_);
  for (Index i = 0; i < n_; ++i) {
    Row& row = rows_[as_size(i)];
    found.size = 0;
    for (Index e = offsets[i]; e < offsets[i + 1]; ++e)
      if (columns[e] != i && similarities[e] > minus_infinity<double>)
        found.add(jitter_(similarities[e], i, columns[e]), columns[e]);
    row.append(found, availability, arenas_[0]);
    row.unlisted = minus_infinity<double>;
  }
}

template <class T>
void CandidateLists::fill_from_nearest(const Nearest<T>& nearest, const Refinement<T>& refinement,
                                       const double* availability) {
  std::vector<NewCandidates> scratch(arenas_.size(), NewCandidates(2 * nearest.want()));
#pragma omp parallel for schedule(dynamic, 64) num_threads(static_cast<int>(arenas_.size()))
  for (Index i = 0; i < n_; ++i) {
    const auto own = thread_number();
    NewCandidates& found = scratch[own];
    Row& row = rows_[as_size(i)];
    found.size = 0;
    row.below = static_cast<double>(nearest.unlisted(i));
    row.unlisted = bound(i, row.below, nearest.size(i) == n_ - 1, refinement);
    for (Index e = 0; e < nearest.size(i); ++e) {
      const Column k = nearest.columns(i)[e];
      const double s = jitter_((*refinement.exact)(i, k), i, k);
      if (s >= row.unlisted) found.add(s, k);
    }
    row.append(found, availability, arenas_[own]);
  }
}

void CandidateLists::assign(const Indices& position, Indices& labels,
                            [[maybe_unused]] int threads) const {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (Index i = 0; i < n_; ++i) {
    const Row& row = rows_[as_size(i)];
    const auto at = [&](Index k) { return position[as_size(k)]; };
    const Column best = row.best(row.unlisted, [&](Column k) { return at(k) >= 0; });
    const Index none = row.unlisted == minus_infinity<double> ? -1 : kUnassigned;
    labels[as_size(i)] = at(i) >= 0 ? at(i) : best >= 0 ? at(best) : none;
  }
}

Index CandidateLists::longest() const {
  Index most = 0;
  for (const Row& row : rows_) most = std::max(most, row.size());
  return most;
}

void CandidateLists::reset() {
  for (Row& row : rows_) row.reset();
}

#define EPRUNER_INSTANTIATE(T)                                                                 \
  template void CandidateLists::refill<T>(const Indices&, const RowSource<T>&,                 \
                                          const Refinement<T>&, const double*, bool, Workers&, \
                                          T*);                                                 \
  template void CandidateLists::fill_from_nearest<T>(const Nearest<T>&, const Refinement<T>&,  \
                                                     const double*);
EPRUNER_INSTANTIATE(float)
EPRUNER_INSTANTIATE(double)

}  // namespace epruner
