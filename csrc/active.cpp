#include "active.hpp"

#include <omp.h>

#include <array>
#include <atomic>
#include <numeric>
#include <stdexcept>

namespace epruner {
namespace {

constexpr Index kFirstWant = 16;      // candidates a row starts with
constexpr Index kSerialBelow = 8192;  // listed entries; thread start-up costs more than it saves
constexpr Index kCrowdedShare = 8;    // dense passes win once lists hold more than n / 8 columns
constexpr Index kAlwaysSparse = 48;   // lists of this length are never worth a dense pass
constexpr Index kSelectionChunk = Index{1} << 26;  // entries of S read between two polls
constexpr std::size_t kArenaChunk = std::size_t{1} << 18;  // doubles

template <class T>
T lowest_finite() {
  return std::numeric_limits<T>::lowest();
}

// A threshold that at least `want` of the entries below `below` reach, and few more.
template <class T>
T threshold(Index n, const T* x, Index self, T below, Index want, std::vector<T>& scratch) {
  if (want >= n - 1) return lowest_finite<T>();
  if (want <= kLanes / 4) {
    std::array<T, kLanes> lanes;
    lanes.fill(minus_infinity<T>);
    lane_maxima(self, x, below, lanes.data());
    lane_maxima(n - self - 1, x + self + 1, below, lanes.data());
    std::nth_element(lanes.begin(), lanes.begin() + (want - 1), lanes.end(), std::greater<T>());
    const T low = lanes[static_cast<std::size_t>(want - 1)];
    return low == minus_infinity<T> ? lowest_finite<T>() : low;
  }
  scratch.clear();
  for (Index k = 0; k < n; ++k)
    if (k != self && x[k] < below) scratch.push_back(x[k]);
  if (static_cast<Index>(scratch.size()) <= want) return lowest_finite<T>();
  std::nth_element(scratch.begin(), scratch.begin() + (want - 1), scratch.end(), std::greater<T>());
  return std::max(scratch[static_cast<std::size_t>(want - 1)], lowest_finite<T>());
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
  capacity = (capacity + 7) / 8 * 8;
  const std::size_t doubles = static_cast<std::size_t>(capacity) / 2 * 7;  // 3 doubles + 1 column
  if (doubles > arena_left_) {
    const std::size_t chunk = std::max(doubles, kArenaChunk);
    arena_.emplace_back(new double[chunk]);
    arena_next_ = arena_.back().get();
    arena_left_ = chunk;
  }
  Row grown = row;
  grown.s = arena_next_;
  grown.r = grown.s + capacity;
  grown.a = grown.r + capacity;
  grown.column = reinterpret_cast<Column*>(grown.a + capacity);
  grown.capacity = capacity;
  arena_next_ += doubles;
  arena_left_ -= doubles;
  std::copy_n(row.s, row.listed, grown.s);
  std::copy_n(row.r, row.active, grown.r);
  std::copy_n(row.a, row.active, grown.a);
  std::copy_n(row.column, row.listed, grown.column);
  row = grown;
}

// Append `found` candidates in descending order of their jittered similarity.
void ActiveSet::fill(Row& row, Index i, Index found, const Column* columns,
                     const double* similarities, double below, double unlisted,
                     std::vector<std::pair<double, Column>>& order) {
  order.resize(static_cast<std::size_t>(found));
  for (Index e = 0; e < found; ++e) {
    const auto q = static_cast<std::size_t>(e);
    order[q] = {jitter_(similarities[e], i, columns[e]), columns[e]};
  }
  std::sort(order.begin(), order.end(), [](const auto& x, const auto& y) {
    return x.first > y.first || (x.first == y.first && x.second < y.second);
  });
  for (Index e = 0; e < found; ++e) {
    row.s[row.listed + e] = order[static_cast<std::size_t>(e)].first;
    row.column[row.listed + e] = order[static_cast<std::size_t>(e)].second;
  }
  row.listed += found;
  row.below = below;
  row.unlisted = unlisted;
}

template <class T>
void ActiveSet::extend(const std::vector<Index>& rows, const RowSource<T>& source) {
  const auto count = static_cast<Index>(rows.size());
  const int threads = count * n_ < kSerialBelow * 4 ? 1 : settings_.threads;
  struct Scratch {
    std::vector<T> values;
    std::vector<Column> columns;
    std::vector<double> exact;
    std::vector<std::pair<double, Column>> order;
  };
  std::vector<Scratch> scratch(static_cast<std::size_t>(threads));
  for (Scratch& own : scratch) {
    own.values.reserve(static_cast<std::size_t>(n_));
    own.columns.resize(static_cast<std::size_t>(n_));
    own.exact.resize(static_cast<std::size_t>(n_));
    own.order.reserve(static_cast<std::size_t>(n_));
  }
  for (Index i : rows) {
    Row& row = rows_[static_cast<std::size_t>(i)];
    reserve(row, std::min(n_ - 1, row.listed + 2 * next_want(row)));
  }
  std::vector<std::uint8_t> tight(static_cast<std::size_t>(count));  // rows with too little room
  std::atomic<bool> invalid{false};

  const auto serve = [&](Index q, Scratch& own) {
    const Index i = rows[static_cast<std::size_t>(q)];
    Row& row = rows_[static_cast<std::size_t>(i)];
    const T* x = source.row(q, i);
    if (has_invalid(i, x) || has_invalid(n_ - i - 1, x + i + 1)) {
      invalid.store(true, std::memory_order_relaxed);
      return;
    }
    const T below = static_cast<T>(row.below);
    const T low = threshold(n_, x, i, below, next_want(row), own.values);
    Column* columns = own.columns.data();
    Index found = collect_between(i, x, low, below, columns);
    const Index right = collect_between(n_ - i - 1, x + i + 1, low, below, columns + found);
    for (Index e = found; e < found + right; ++e) columns[e] += static_cast<Column>(i + 1);
    found += right;
    if (row.listed + found > row.capacity) {
      tight[static_cast<std::size_t>(q)] = 1;
      return;
    }
    for (Index e = 0; e < found; ++e)
      own.exact[static_cast<std::size_t>(e)] =
          source.exact ? (*source.exact)(i, columns[e]) : static_cast<double>(x[columns[e]]);
    const bool all = low == lowest_finite<T>();
    const double unlisted = all ? minus_infinity<double>
                                : jitter_.ceiling(static_cast<double>(low) + source.error);
    fill(row, i, found, columns, own.exact.data(), static_cast<double>(low), unlisted, own.order);
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

void ActiveSet::adopt(const Index* offsets, const Column* columns, const double* similarities,
                      const double* unlisted) {
  std::vector<std::pair<double, Column>> order;
  for (Index i = 0; i < n_; ++i) {
    Row& row = rows_[static_cast<std::size_t>(i)];
    const Index found = offsets[i + 1] - offsets[i];
    reserve(row, found);
    fill(row, i, found, columns + offsets[i], similarities + offsets[i], unlisted[i],
         jitter_.ceiling(unlisted[i]), order);
  }
  blocks_stale_ = true;
}

void ActiveSet::prepare_blocks() {
  listed_ = 0;
  for (std::size_t q = 0; q < blocks_.size(); ++q) {
    const Index first = static_cast<Index>(q) * block_rows_;
    Index room = 0;
    for (Index i = first; i < std::min(n_, first + block_rows_); ++i)
      room += rows_[static_cast<std::size_t>(i)].listed;
    listed_ += room;
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
  for (; row.active < row.listed && !harmless(row.s[row.active]); ++row.active) {
    const auto e = row.active;
    row.r[e] = (1 - decay_) * row.s[e] - mu_[own];
    row.a[e] = abar_[static_cast<std::size_t>(row.column[e])];
    top.add(row.a[e] + row.s[e]);
  }
  if (row.active == row.listed && row.unlisted != minus_infinity<double> && !harmless(row.unlisted))
    return false;
  mu_[own] = keep * mu_[own] + (1 - keep) * top.first;
  diagonal_.update_responsibility(own, keep, top);
  listed_responsibilities(row.active, keep, top, row.s, row.a, row.r);
  Index positives = block.positives;
  for (Index e = 0; e < row.active; ++e)
    if (row.r[e] > 0) {
      block.column[static_cast<std::size_t>(positives)] = row.column[e];
      block.value[static_cast<std::size_t>(positives)] = row.r[e];
      ++positives;
    }
  block.positives = positives;
  return true;
}

void ActiveSet::run_block(Block& block, Index first, Index last) {
  if (!mid_iteration_) {
    for (Index i = first; i < last; ++i) {
      Row& row = rows_[static_cast<std::size_t>(i)];
      const Top2<double> top =
          listed_availabilities(row.active, settings_.damping, diagonal_.total.data(), row.column,
                                row.s, row.r, row.a);
      if (!settle(i, top, block)) block.pending.push_back(i);
    }
    return;
  }
  std::size_t still = 0;
  for (std::size_t q = 0; q < block.pending.size(); ++q) {
    const Index i = block.pending[q];
    const Row& row = rows_[static_cast<std::size_t>(i)];
    if (!settle(i, listed_top2(row.active, row.s, row.a), block)) block.pending[still++] = i;
  }
  block.pending.resize(still);
}

Status ActiveSet::iterate(const Poll& poll) {
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
  }
}

std::vector<Index> ActiveSet::starved() const {
  std::vector<Index> rows;
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
      r[row.column[e]] = static_cast<T>(row.r[e]);
      a[row.column[e]] = static_cast<T>(row.a[e]);
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
    std::vector<Index> rows(static_cast<std::size_t>(std::min(chunk, n - first)));
    std::iota(rows.begin(), rows.end(), first);
    lists.extend(rows, source);
    if (poll()) return lists.outcome(Status::interrupted);
  }
  while (true) {
    const Status status = lists.iterate(poll);
    if (status != Status::starved) return lists.outcome(status);
    if (lists.crowded()) break;
    lists.extend(lists.starved(), source);
  }
  Dense<T> dense(n, S, stride, jitter, lists.diagonal(), settings);
  dense.complete_iteration(lists.expand(dense));
  const Index t = lists.iteration();
  if (dense.diagonal().finish_iteration(t, settings))
    return {dense.diagonal().is_exemplar, t + 1, Status::converged};
  return dense.iterate(t + 1, poll);
}

template void ActiveSet::extend<float>(const std::vector<Index>&, const RowSource<float>&);
template void ActiveSet::extend<double>(const std::vector<Index>&, const RowSource<double>&);
template std::vector<std::uint8_t> ActiveSet::expand<float>(Dense<float>&) const;
template std::vector<std::uint8_t> ActiveSet::expand<double>(Dense<double>&) const;
template Outcome solve_matrix<float>(Index, const float*, Index, const double*, const Jitter&,
                                     const Settings&, const Poll&);
template Outcome solve_matrix<double>(Index, const double*, Index, const double*, const Jitter&,
                                      const Settings&, const Poll&);

}  // namespace epruner
