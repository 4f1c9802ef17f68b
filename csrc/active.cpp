#include "active.hpp"

#include <omp.h>

#include <array>
#include <atomic>
#include <numeric>
#include <stdexcept>

namespace epruner {
namespace {

constexpr Index kFirstWant = 16;      // candidates a row starts with
constexpr Index kSerialBelow = 32768;  // listed entries; waiting for threads costs more than it saves
constexpr Index kCrowdedShare = 8;    // dense passes win once lists hold more than n / 8 columns
constexpr Index kAlwaysSparse = 48;   // lists of this length are never worth a dense pass
constexpr Index kSelectionChunk = Index{1} << 26;  // entries of S read between two polls
constexpr std::size_t kArenaChunk = std::size_t{1} << 16;  // quads

template <class T>
T lowest_finite() {
  return std::numeric_limits<T>::lowest();
}

// A value in [low, high] that at least `want` and not many more entries of x reach (without those
// from `below` up). At least `want` reach `low`; fewer reach `high`. Counting is vectorised and
// exactness is not needed, which beats a selection.
template <class T>
T bisect(Index n, const T* x, T low, T high, T below, Index want) {
  const Index enough = want + want / 2 + 1;
  for (int step = 0; step < 24; ++step) {
    const T middle = low + (high - low) / 2;
    if (!(middle > low && middle < high)) break;
    const Index count = count_between(n, x, middle, below);
    if (count < want) {
      high = middle;
    } else {
      low = middle;
      if (count <= enough) break;
    }
  }
  return low;
}

// A threshold that at least `want` of a row's entries below `below` reach, and not many more; the
// row may hold its own point, which then counts. lowest() if fewer are left.
template <class T>
T threshold(Index n, const T* x, Index self, T below, T nearest, Index want) {
  if (n <= 2 * kLanes && n <= 4 * want) return lowest_finite<T>();
  const bool first = below == std::numeric_limits<T>::infinity();
  T from = below;
  if (first) {  // maxima of strided lanes
    std::array<T, kLanes> lanes;
    lanes.fill(minus_infinity<T>);
    lane_maxima(self, x, below, lanes.data());
    lane_maxima(n - self - 1, x + self + 1, below, lanes.data());
    const auto [low, high] = std::minmax_element(lanes.begin(), lanes.end());
    if (*low == minus_infinity<T>) return lowest_finite<T>();
    if (want <= kLanes) return bisect(kLanes, lanes.data(), *low, *high, below, want);
    from = *low;  // lanes cannot tell: so many are as near as the nearest
    nearest = *high;
  }
  // Later calls, or many ties: widen downwards from where the last threshold was.
  T gap = nearest - from;
  if (!(gap > T(0))) {  // a small part of what the row spans
    T least = from;
    for (Index k = 0; k < n; ++k)
      if (k != self && x[k] > minus_infinity<T>) least = std::min(least, x[k]);
    gap = (from - least) / T(1024);
    if (!(gap > T(0))) return lowest_finite<T>();
  }
  for (T low = from; low > lowest_finite<T>() / 4; gap *= 2) {
    const T high = low;
    low = from - gap;
    if (count_between(n, x, low, below) >= want) return bisect(n, x, low, high, below, want);
    if (count_between(n, x, minus_infinity<T>, low) <= 1) break;
  }
  return lowest_finite<T>();
}

}  // namespace

ActiveSet::ActiveSet(Index n, const double* preference, const Jitter& jitter,
                     const Settings& settings)
    : n_(n),
      jitter_(jitter),
      settings_(settings),
      diagonal_(n, preference, jitter),
      rows_(static_cast<std::size_t>(n)),
      mu_(static_cast<std::size_t>(n)),
      abar_(static_cast<std::size_t>(n)),
      block_rows_(std::max<Index>(32, n / 256)),
      blocks_(static_cast<std::size_t>((n + block_rows_ - 1) / block_rows_)) {
  for (Block& block : blocks_) block.pending.reserve(static_cast<std::size_t>(block_rows_));
}

Index ActiveSet::next_want(const Row& row) const { return std::max(kFirstWant, row.listed); }

// Room for `capacity` candidates, keeping what the row holds. Rows grow geometrically and move
// within chunks that never move, so that growth copies one row and nothing else.
void ActiveSet::reserve(Row& row, Index capacity) {
  if (capacity <= row.capacity) return;
  const auto quads = static_cast<std::size_t>((capacity + Quad::width - 1) / Quad::width);
  if (quads > arena_left_) {
    const std::size_t chunk = std::max(quads, kArenaChunk);
    arena_.emplace_back(new Quad[chunk]);
    arena_next_ = arena_.back().get();
    arena_left_ = chunk;
  }
  std::copy_n(row.quads, (row.listed + Quad::width - 1) / Quad::width, arena_next_);
  row.quads = arena_next_;
  row.capacity = static_cast<Index>(quads) * Quad::width;
  arena_next_ += quads;
  arena_left_ -= quads;
}

// Append candidates in descending order of their jittered similarity.
void ActiveSet::append(Row& row, std::vector<std::pair<double, Column>>& found) {
  std::sort(found.begin(), found.end(), [](const auto& x, const auto& y) {
    return x.first > y.first || (x.first == y.first && x.second < y.second);
  });
  for (const auto& [s, column] : found) {
    row.s(row.listed) = s;
    row.r(row.listed) = row.a(row.listed) = minus_infinity<double>;
    row.column(row.listed) = column;
    ++row.listed;
  }
  for (Index e = row.listed; e % Quad::width != 0; ++e) {
    row.s(e) = row.r(e) = row.a(e) = minus_infinity<double>;
    row.column(e) = 0;
  }
}

// How far the jittered similarity of a pair may be from the entry `s` of point i's row.
template <class T>
double ActiveSet::uncertainty(Index i, double s, const Refinement<T>& refinement) const {
  return std::isinf(s) ? 0.0 : jitter_.ceiling(s) - s + refinement.error(i, s);
}

// What no unlisted pair of point i exceeds once all entries from `low` up have been looked at.
// Lists keep only what reaches this bound, so that they descend and end where the rest begins.
template <class T>
double ActiveSet::bound(Index i, double low, bool everything,
                        const Refinement<T>& refinement) const {
  return everything ? minus_infinity<double> : low + uncertainty(i, low, refinement);
}

template <class T>
void ActiveSet::extend(const Indices& rows, const RowSource<T>& source,
                       const Refinement<T>& refinement) {
  const auto count = static_cast<Index>(rows.size());
  const int threads = count * n_ < kSerialBelow * 4 ? 1 : settings_.threads;
  struct Scratch {
    std::vector<Column> columns;
    std::vector<std::uint8_t> listed;
    std::vector<std::pair<double, Column>> found;
  };
  std::vector<Scratch> scratch(static_cast<std::size_t>(threads));
  for (Scratch& own : scratch) {
    own.columns.resize(static_cast<std::size_t>(n_));
    own.listed.resize(static_cast<std::size_t>(n_));
    own.found.reserve(static_cast<std::size_t>(n_));
  }
  for (Index i : rows) {
    Row& row = rows_[static_cast<std::size_t>(i)];
    reserve(row, std::min(n_ - 1, row.listed + 2 * next_want(row)));
  }
  std::vector<std::uint8_t> tight(rows.size());  // rows with too little room
  std::atomic<bool> invalid{false};

  const auto serve = [&](Index q, Scratch& own) {
    const Index i = rows[static_cast<std::size_t>(q)];
    Row& row = rows_[static_cast<std::size_t>(i)];
    const T* x = source.row(q, i);
    if (has_invalid(i, x) || has_invalid(n_ - i - 1, x + i + 1)) {
      invalid.store(true, std::memory_order_relaxed);
      return;
    }
    // What the last threshold's uncertainty kept off the list lies a little over it.
    const auto below = static_cast<T>(row.below);
    const auto over = static_cast<T>(row.below + 2 * uncertainty(i, row.below, refinement));
    for (Index e = 0; e < row.listed; ++e) own.listed[static_cast<std::size_t>(row.column(e))] = 1;
    const T nearest = row.listed > 0 ? static_cast<T>(row.s(0)) : below;
    T low = below;
    double unlisted = row.unlisted;
    for (Index want = next_want(row);; want *= 2) {
      low = threshold(n_, x, i, below, nearest, want);
      unlisted = bound(i, static_cast<double>(low), low == lowest_finite<T>(), refinement);
      Column* columns = own.columns.data();
      const Index left = collect_between(i, x, low, over, columns);
      const Index right = collect_between(n_ - i - 1, x + i + 1, low, over, columns + left);
      for (Index e = left; e < left + right; ++e) columns[e] += static_cast<Column>(i + 1);
      own.found.clear();
      for (Index e = 0; e < left + right; ++e) {
        const Column k = columns[e];
        if (own.listed[static_cast<std::size_t>(k)]) continue;
        const double exact = refinement.exact ? (*refinement.exact)(i, k) : static_cast<double>(x[k]);
        const double s = jitter_(exact, i, k);
        if (s >= unlisted) own.found.emplace_back(s, k);
      }
      if (!own.found.empty() || low == lowest_finite<T>()) break;
    }
    for (Index e = 0; e < row.listed; ++e) own.listed[static_cast<std::size_t>(row.column(e))] = 0;
    if (row.listed + static_cast<Index>(own.found.size()) > row.capacity) {
      tight[static_cast<std::size_t>(q)] = 1;
      return;
    }
    append(row, own.found);
    row.below = static_cast<double>(low);
    row.unlisted = unlisted;
  };

#pragma omp parallel for schedule(dynamic, 16) num_threads(threads)
  for (Index q = 0; q < count; ++q)
    serve(q, scratch[static_cast<std::size_t>(omp_get_thread_num())]);
  if (invalid)
    throw std::invalid_argument("S holds NaN or +inf; use -inf for pairs that must not be linked");
  for (Index q = 0; q < count; ++q)
    if (tight[static_cast<std::size_t>(q)]) {
      reserve(rows_[static_cast<std::size_t>(rows[static_cast<std::size_t>(q)])], n_ - 1);
      serve(q, scratch[0]);
    }
  blocks_stale_ = true;
}

void ActiveSet::adopt(const Index* offsets, const Column* columns, const double* similarities) {
  std::vector<std::pair<double, Column>> found;
  for (Index i = 0; i < n_; ++i) {
    Row& row = rows_[static_cast<std::size_t>(i)];
    found.clear();
    for (Index e = offsets[i]; e < offsets[i + 1]; ++e)
      if (columns[e] != i && similarities[e] > minus_infinity<double>)
        found.emplace_back(jitter_(similarities[e], i, columns[e]), columns[e]);
    reserve(row, static_cast<Index>(found.size()));
    append(row, found);
    row.unlisted = minus_infinity<double>;
  }
  blocks_stale_ = true;
}

template <class T>
void ActiveSet::adopt(const Nearest<T>& nearest, const Refinement<T>& refinement) {
  for (Index i = 0; i < n_; ++i) reserve(rows_[static_cast<std::size_t>(i)], nearest.size(i));
  std::vector<std::vector<std::pair<double, Column>>> scratch(
      static_cast<std::size_t>(settings_.threads));
  for (auto& found : scratch) found.reserve(static_cast<std::size_t>(2 * nearest.want()));
#pragma omp parallel for schedule(dynamic, 64) num_threads(settings_.threads)
  for (Index i = 0; i < n_; ++i) {
    auto& found = scratch[static_cast<std::size_t>(omp_get_thread_num())];
    Row& row = rows_[static_cast<std::size_t>(i)];
    found.clear();
    row.below = static_cast<double>(nearest.unlisted(i));
    row.unlisted = bound(i, row.below, nearest.size(i) == n_ - 1, refinement);
    for (Index e = 0; e < nearest.size(i); ++e) {
      const Column k = nearest.columns(i)[e];
      const double s = jitter_((*refinement.exact)(i, k), i, k);
      if (s >= row.unlisted) found.emplace_back(s, k);
    }
    append(row, found);
  }
  blocks_stale_ = true;
}

void ActiveSet::restart(const double* preference, double damping) {
  settings_.damping = damping;
  diagonal_ = Diagonal(n_, preference, jitter_);
  std::fill(mu_.begin(), mu_.end(), 0.0);
  std::fill(abar_.begin(), abar_.end(), 0.0);
  for (Row& row : rows_) {
    for (Index e = 0; e < row.active; ++e) row.r(e) = row.a(e) = minus_infinity<double>;
    row.active = 0;
  }
  decay_ = 1;
  t_ = 0;
  mid_iteration_ = false;
}

void ActiveSet::assign(const Indices& position, Indices& labels) const {
#pragma omp parallel for schedule(static) num_threads(settings_.threads)
  for (Index i = 0; i < n_; ++i) {
    const Row& row = rows_[static_cast<std::size_t>(i)];
    Index label = row.unlisted == minus_infinity<double> ? -1 : kUnassigned;
    double best = row.unlisted;
    for (Index e = 0; e < row.listed; ++e) {
      const Index at = position[static_cast<std::size_t>(row.column(e))];
      if (at >= 0 && row.s(e) > best) {
        best = row.s(e);
        label = at;
      }
    }
    const Index own = position[static_cast<std::size_t>(i)];
    labels[static_cast<std::size_t>(i)] = own >= 0 ? own : label;
  }
}

void ActiveSet::prepare_blocks() {
  listed_ = 0;
  for (std::size_t q = 0; q < blocks_.size(); ++q) {
    const Index first = static_cast<Index>(q) * block_rows_;
    Index room = 0;
    for (Index i = first; i < std::min(n_, first + block_rows_); ++i)
      room += rows_[static_cast<std::size_t>(i)].listed;
    listed_ += room;
    room += Quad::width;  // positives are written a quad at a time
    blocks_[q].column.resize(static_cast<std::size_t>(room));
    blocks_[q].value.resize(static_cast<std::size_t>(room));
  }
  blocks_stale_ = false;
}

// abar from the last iteration's totals: the availability of every pair that holds no message.
void ActiveSet::begin_iteration() {
  const double keep = settings_.damping;
  abar_max_ = minus_infinity<double>;
  for (std::size_t k = 0; k < abar_.size(); ++k) {
    abar_[k] = keep * abar_[k] + (1 - keep) * std::min(0.0, diagonal_.total[k]);
    abar_max_ = std::max(abar_max_, abar_[k]);
  }
  for (Block& block : blocks_) {
    block.positives = 0;
    block.pending.clear();
  }
}

// Activate what must be, then update the row's responsibilities. Returns false when the row needs
// candidates that it does not have.
bool ActiveSet::settle(Index i, Top2<double> top, Block& block) {
  const double keep = settings_.damping;
  const auto own = static_cast<std::size_t>(i);
  Row& row = rows_[own];
  top.add(diagonal_.a[own] + diagonal_.preference[own]);
  const double grown = 1 - decay_ * keep;
  // Whether nothing as similar as s or less can be a row maximum or have R > 0 in this iteration.
  const auto harmless = [&](double s) {
    return s + abar_max_ <= top.second && grown * s <= keep * mu_[own] + (1 - keep) * top.first;
  };
  for (; row.active < row.listed && !harmless(row.s(row.active)); ++row.active) {
    const Index e = row.active;
    row.r(e) = (1 - decay_) * row.s(e) - mu_[own];
    row.a(e) = abar_[static_cast<std::size_t>(row.column(e))];
    top.add(row.a(e) + row.s(e));
  }
  if (row.active == row.listed && row.unlisted != minus_infinity<double> && !harmless(row.unlisted))
    return false;
  mu_[own] = keep * mu_[own] + (1 - keep) * top.first;
  diagonal_.update_responsibility(own, keep, top);
  block.positives += listed_responsibilities(row.quads_active(), keep, top, row.quads,
                                             block.column.data() + block.positives,
                                             block.value.data() + block.positives);
  return true;
}

void ActiveSet::run_block(Block& block, Index first, Index last) {
  if (!mid_iteration_) {
    for (Index i = first; i < last; ++i) {
      Row& row = rows_[static_cast<std::size_t>(i)];
      const Top2<double> top =
          listed_availabilities(row.quads_active(), settings_.damping, diagonal_.total.data(),
                                row.quads);
      if (!settle(i, top, block)) block.pending.push_back(i);
    }
    return;
  }
  std::size_t still = 0;
  for (std::size_t q = 0; q < block.pending.size(); ++q) {
    const Index i = block.pending[q];
    const Row& row = rows_[static_cast<std::size_t>(i)];
    if (!settle(i, listed_top2(row.quads_active(), row.quads), block)) block.pending[still++] = i;
  }
  block.pending.resize(still);
}

Status ActiveSet::iterate(const Poll& poll, Index iterations) {
  while (true) {
    if (blocks_stale_) prepare_blocks();
    if (!mid_iteration_) {
      if (t_ == settings_.max_iter) return Status::exhausted;
      begin_iteration();
    }
    std::atomic<bool> stop{false};
    const int threads = listed_ < kSerialBelow ? 1 : settings_.threads;
    const auto blocks = static_cast<Index>(blocks_.size());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (Index q = 0; q < blocks; ++q) {
      const Index first = q * block_rows_;
      run_block(blocks_[static_cast<std::size_t>(q)], first, std::min(n_, first + block_rows_));
      if (omp_get_thread_num() == 0 && poll()) stop.store(true, std::memory_order_relaxed);
    }
    if (stop) return Status::interrupted;
    mid_iteration_ = true;
    for (const Block& block : blocks_)
      if (!block.pending.empty()) return Status::starved;
    std::fill(diagonal_.support.begin(), diagonal_.support.end(), 0.0);
    for (const Block& block : blocks_)
      for (Index q = 0; q < block.positives; ++q)
        diagonal_.support[static_cast<std::size_t>(block.column[static_cast<std::size_t>(q)])] +=
            block.value[static_cast<std::size_t>(q)];
    mid_iteration_ = false;
    decay_ *= settings_.damping;
    if (diagonal_.finish_iteration(t_++, settings_)) return Status::converged;
    if (--iterations == 0) return Status::running;
  }
}

Indices ActiveSet::starved() const {
  Indices rows;
  for (const Block& block : blocks_)
    rows.insert(rows.end(), block.pending.begin(), block.pending.end());
  return rows;
}

bool ActiveSet::crowded() const {
  Index projected = listed_;
  for (const Block& block : blocks_)
    for (Index i : block.pending) projected += next_want(rows_[static_cast<std::size_t>(i)]);
  return projected > n_ * std::max(kAlwaysSparse, n_ / kCrowdedShare);
}

Index ActiveSet::active() const {
  return std::accumulate(rows_.begin(), rows_.end(), Index{0},
                         [](Index sum, const Row& row) { return sum + row.active; });
}

Index ActiveSet::longest() const {
  Index most = 0;
  for (const Row& row : rows_) most = std::max(most, row.active);
  return most;
}

Outcome ActiveSet::outcome(Status status) const { return {diagonal_.is_exemplar, t_, status}; }

template <class T>
std::vector<std::uint8_t> ActiveSet::expand(Dense<T>& dense) const {
  std::vector<std::uint8_t> done(rows_.size(), 1);
  for (const Block& block : blocks_)
    for (Index i : block.pending) done[static_cast<std::size_t>(i)] = 0;
#pragma omp parallel for schedule(static) num_threads(settings_.threads)
  for (Index i = 0; i < n_; ++i) {
    const auto own = static_cast<std::size_t>(i);
    const Row& row = rows_[own];
    const double grown = 1 - (done[own] ? decay_ * settings_.damping : decay_);
    const T* s = dense.s(i);
    T *r = dense.r(i), *a = dense.a(i);
    for (Index k = 0; k < n_; ++k) {
      r[k] = grown > 0 ? static_cast<T>(grown * static_cast<double>(s[k]) - mu_[own]) : T(0);
      a[k] = static_cast<T>(abar_[static_cast<std::size_t>(k)]);
    }
    for (Index e = 0; e < row.active; ++e) {
      r[row.column(e)] = static_cast<T>(row.r(e));
      a[row.column(e)] = static_cast<T>(row.a(e));
    }
  }
  return done;
}

template <class T>
Outcome solve_matrix(Index n, const T* S, Index stride, const double* preference,
                     const Jitter& jitter, const Settings& settings, const Poll& poll) {
  ActiveSet lists(n, preference, jitter, settings);
  const RowSource<T> source{S, stride, true};
  const Index chunk = std::max<Index>(1, kSelectionChunk / n);
  for (Index first = 0; first < n; first += chunk) {
    Indices rows(static_cast<std::size_t>(std::min(chunk, n - first)));
    std::iota(rows.begin(), rows.end(), first);
    lists.extend(rows, source, Refinement<T>{});
    if (poll()) return lists.outcome(Status::interrupted);
  }
  while (true) {
    const Status status = lists.iterate(poll);
    if (status != Status::starved) return lists.outcome(status);
    if (lists.crowded()) break;
    lists.extend(lists.starved(), source, Refinement<T>{});
  }
  Dense<T> dense(n, S, stride, jitter, lists.diagonal(), settings);
  dense.complete_iteration(lists.expand(dense));
  const Index t = lists.iteration();
  if (dense.diagonal().finish_iteration(t, settings))
    return {dense.diagonal().is_exemplar, t + 1, Status::converged};
  return dense.iterate(t + 1, poll);
}

template void ActiveSet::extend<float>(const Indices&, const RowSource<float>&,
                                       const Refinement<float>&);
template void ActiveSet::extend<double>(const Indices&, const RowSource<double>&,
                                        const Refinement<double>&);
template void ActiveSet::adopt<float>(const Nearest<float>&, const Refinement<float>&);
template void ActiveSet::adopt<double>(const Nearest<double>&, const Refinement<double>&);
template std::vector<std::uint8_t> ActiveSet::expand<float>(Dense<float>&) const;
template std::vector<std::uint8_t> ActiveSet::expand<double>(Dense<double>&) const;
template Outcome solve_matrix<float>(Index, const float*, Index, const double*, const Jitter&,
                                     const Settings&, const Poll&);
template Outcome solve_matrix<double>(Index, const double*, Index, const double*, const Jitter&,
                                      const Settings&, const Poll&);

}  // namespace epruner
