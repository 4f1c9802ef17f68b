#include "active.hpp"

#include <atomic>
#include <new>
#include <numeric>
#include <stdexcept>

#include "order.hpp"
#include "threads.hpp"

namespace epruner {
namespace {

constexpr Index kFirstWant = 16;   // candidates a row starts with
constexpr Index kSettledFrom = 2;  // iterations; the first look at more candidates than later ones
constexpr Index kEagerness = 5;
constexpr Index kRowsAtOnce = 16;    // that a thread takes when rows get candidates
constexpr Index kCrowdedShare = 8;   // dense passes win once lists hold more than n / 8 columns
constexpr Index kAlwaysSparse = 48;  // lists of this length are never worth a dense pass
constexpr Index kSelectionChunk = Index{1} << 26;  // entries of S read between two polls
// From where threads save more than they cost: listed entries to iterate over, entries of S to
// select from, listed entries to assign points by.
constexpr Index kIterateTogether = 4096;
constexpr Index kSelectTogether = Index{1} << 17;
constexpr Index kAssignTogether = Index{1} << 20;

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
  lanes.resize(static_cast<std::size_t>(parts * kLanes<T>));
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
      blocks_(static_cast<std::size_t>((n + block_rows_ - 1) / block_rows_)),
      arenas_(static_cast<std::size_t>(settings.threads)) {
  for (Block& block : blocks_) block.pending.reserve(static_cast<std::size_t>(block_rows_));
}

// How many more candidates a row gets: as many again as it has, and more where nearly all rows
// starve at once, as they do where clusters are large; but not so many that dense passes would be
// cheaper.
Index ActiveSet::next_want(const Row& row) const {
  const Index known = row.known();
  const Index eager = 4 * starving_ > 3 * n_ ? kEagerness * known : known;
  return std::max({kFirstWant, known, std::min(eager, n_ / (2 * kCrowdedShare) - known)});
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
ActiveSet::Scratch<T>::Scratch(Index n)
    : row(static_cast<std::size_t>(n)),
      columns(static_cast<std::size_t>(n)),
      listed(static_cast<std::size_t>(n)),
      found(n) {}

// Append the next candidates of point i, whose row is x. False where x holds what is no similarity.
template <class T>
bool ActiveSet::serve(Index i, const T* x, const Refinement<T>& refinement, Scratch<T>& scratch,
                      Arena& arena) {
  Row& row = rows_[static_cast<std::size_t>(i)];
  Found& found = scratch.found;
  // What the last threshold's uncertainty kept off the list lies a little over it.
  const auto below = static_cast<T>(row.below);
  const auto over = static_cast<T>(row.below + 2 * uncertainty(i, row.below, refinement));
  const auto mark = [&](std::uint8_t value) {
    scratch.listed[static_cast<std::size_t>(i)] = value;
    row.each_column([&](Column k) { scratch.listed[static_cast<std::size_t>(k)] = value; });
  };
  mark(1);
  T low = below;
  double unlisted = row.unlisted;
  found.size = 0;
  for (Index want = next_want(row); found.size == 0 && low != lowest_finite<T>(); want *= 2) {
    low = threshold(n_, x, i, below, want, scratch.lanes);
    if (std::isnan(low)) return false;
    unlisted = bound(i, static_cast<double>(low), low == lowest_finite<T>(), refinement);
    const Index count = collect_between(n_, x, low, over, scratch.columns.data());
    for (Index e = 0; e < count; ++e) {
      const Column k = scratch.columns[static_cast<std::size_t>(e)];
      if (scratch.listed[static_cast<std::size_t>(k)]) continue;
      const double exact = refinement.exact ? (*refinement.exact)(i, k) : static_cast<double>(x[k]);
      const double s = jitter_(exact, i, k);
      if (s >= unlisted) found.add(s, k);
    }
  }
  mark(0);
  row.append(found, abar_.data(), arena);
  row.below = static_cast<double>(low);
  row.unlisted = unlisted;
  return true;
}

template <class T>
void ActiveSet::extend(const Indices& rows, const RowSource<T>& source,
                       const Refinement<T>& refinement, T* medians) {
  const auto count = static_cast<Index>(rows.size());
  std::vector<std::unique_ptr<Scratch<T>>> scratch(arenas_.size());
  std::atomic<bool> invalid{false};
  const auto serve_point = [&](Index q, std::size_t thread) {
    if (!scratch[thread]) scratch[thread] = std::make_unique<Scratch<T>>(n_);
    Scratch<T>& own = *scratch[thread];
    const Index i = rows[static_cast<std::size_t>(q)];
    const T* x = source.row(q, i, own.row.data());
    if (!serve(i, x, refinement, own, arenas_[thread]))
      invalid.store(true, std::memory_order_relaxed);
    if (!medians) return;
    if (x != own.row.data()) std::copy_n(x, n_, own.row.data());
    const double preference = diagonal_.preference[static_cast<std::size_t>(i)];
    own.row[static_cast<std::size_t>(i)] =
        static_cast<T>(refinement.exact ? (*refinement.exact)(i, i) : preference);
    medians[q] = median(own.row.data(), n_, own.columns);
  };
  together(count * n_ >= kSelectTogether, [&] {
    share((count + kRowsAtOnce - 1) / kRowsAtOnce, [&](Index piece, std::size_t thread) {
      const Index first = piece * kRowsAtOnce;
      for (Index q = first; q < std::min(count, first + kRowsAtOnce); ++q) serve_point(q, thread);
    });
    return true;
  });
  if (invalid)
    throw std::invalid_argument("S holds NaN or +inf; use -inf for pairs that must not be linked");
  blocks_stale_ = true;
}

void ActiveSet::adopt(const Index* offsets, const Column* columns, const double* similarities) {
  Found found(n_);
  for (Index i = 0; i < n_; ++i) {
    Row& row = rows_[static_cast<std::size_t>(i)];
    found.size = 0;
    for (Index e = offsets[i]; e < offsets[i + 1]; ++e)
      if (columns[e] != i && similarities[e] > minus_infinity<double>)
        found.add(jitter_(similarities[e], i, columns[e]), columns[e]);
    row.append(found, abar_.data(), arenas_[0]);
    row.unlisted = minus_infinity<double>;
  }
  blocks_stale_ = true;
}

template <class T>
void ActiveSet::adopt(const Nearest<T>& nearest, const Refinement<T>& refinement) {
  std::vector<Found> scratch(static_cast<std::size_t>(settings_.threads),
                             Found(2 * nearest.want()));
#pragma omp parallel for schedule(dynamic, 64) num_threads(settings_.threads)
  for (Index i = 0; i < n_; ++i) {
    const auto own = thread_number();
    Found& found = scratch[own];
    Row& row = rows_[static_cast<std::size_t>(i)];
    found.size = 0;
    row.below = static_cast<double>(nearest.unlisted(i));
    row.unlisted = bound(i, row.below, nearest.size(i) == n_ - 1, refinement);
    for (Index e = 0; e < nearest.size(i); ++e) {
      const Column k = nearest.columns(i)[e];
      const double s = jitter_((*refinement.exact)(i, k), i, k);
      if (s >= row.unlisted) found.add(s, k);
    }
    row.append(found, abar_.data(), arenas_[own]);
  }
  blocks_stale_ = true;
}

void ActiveSet::restart(const double* preference, double damping) {
  settings_.damping = damping;
  diagonal_ = Diagonal(n_, preference, jitter_);
  std::fill(mu_.begin(), mu_.end(), 0.0);
  std::fill(abar_.begin(), abar_.end(), 0.0);
  for (Row& row : rows_) row.reset();
  decay_ = 1;
  t_ = 0;
  starving_ = 0;
  mid_iteration_ = false;
}

void ActiveSet::assign(const Indices& position, Indices& labels) const {
  const int threads = listed_ < kAssignTogether ? 1 : settings_.threads;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (Index i = 0; i < n_; ++i) {
    const Row& row = rows_[static_cast<std::size_t>(i)];
    const auto at = [&](Index k) { return position[static_cast<std::size_t>(k)]; };
    const Column best = row.best(row.unlisted, [&](Column k) { return at(k) >= 0; });
    const Index none = row.unlisted == minus_infinity<double> ? -1 : kUnassigned;
    labels[static_cast<std::size_t>(i)] = at(i) >= 0 ? at(i) : best >= 0 ? at(best) : none;
  }
}

void ActiveSet::prepare_blocks() {
  listed_ = 0;
  for (std::size_t q = 0; q < blocks_.size(); ++q) {
    const Index first = static_cast<Index>(q) * block_rows_;
    Index room = 0;
    for (Index i = first; i < std::min(n_, first + block_rows_); ++i)
      room += rows_[static_cast<std::size_t>(i)].known();
    listed_ += room;
    room += Octet::width;  // positives are written some at a time
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

// R of point i's pairs before this iteration.
ClosedForm ActiveSet::closed_form(Index i) const {
  return {1 - decay_, mu_[static_cast<std::size_t>(i)]};
}

// Update the row's responsibilities. Returns false when the row needs candidates that it does not
// have.
bool ActiveSet::settle(Index i, const RowTop& top, Block& block, Arena& arena) {
  const double keep = settings_.damping;
  const auto own = static_cast<std::size_t>(i);
  Row& row = rows_[own];
  const auto [first, second] = top.values;
  const ClosedForm before = closed_form(i);
  const ClosedForm now{1 - decay_ * keep, keep * before.mu + (1 - keep) * first};
  if (row.unlisted + abar_max_ > second || now.grown * row.unlisted > now.mu) return false;
  if (!top.known) row.promote(first, abar_.data(), before, arena);
  mu_[own] = now.mu;
  diagonal_.update_responsibility(own, keep, top.values);
  const Positives found =
      listed_responsibilities(keep, top.values, now, row, block.column.data() + block.positives,
                              block.value.data() + block.positives);
  block.positives += found.all;
  // What is looked at in every iteration is cheaper to hold.
  const Index held = row.backed * Octet::width;
  const bool again = t_ >= kSettledFrom && row.s(held) + abar_max_ > second;
  if (found.leading > held || again)
    row.back(std::max(found.leading, held + (again ? 1 : 0)), abar_.data());
  return true;
}

// Lists lie apart in memory, which the hardware does not foresee.
void ActiveSet::prefetch(const Row& row) {
  const auto* line = reinterpret_cast<const char*>(row.peaks);
  const auto* end = reinterpret_cast<const char*>(row.octets + row.backed);
  for (; line < end; line += 64) prefetch_line(line);
}

void ActiveSet::run_block(Block& block, Index first, Index last, Arena& arena) {
  const Sweep sweep{settings_.damping, diagonal_.total.data(), abar_.data(), abar_max_};
  const auto self = [&](Index i) {
    const auto own = static_cast<std::size_t>(i);
    return diagonal_.a[own] + diagonal_.preference[own];
  };
  if (!mid_iteration_) {
    for (Index i = first; i < last; ++i) {
      prefetch(rows_[static_cast<std::size_t>(std::min(i + 1, last - 1))]);
      Row& row = rows_[static_cast<std::size_t>(i)];
      const RowTop top = listed_availabilities(sweep, closed_form(i), self(i), row);
      if (!settle(i, top, block, arena)) block.pending.push_back(i);
    }
    return;
  }
  std::size_t still = 0;
  for (std::size_t q = 0; q < block.pending.size(); ++q) {
    const Index i = block.pending[q];
    const RowTop top = listed_top(sweep, self(i), rows_[static_cast<std::size_t>(i)]);
    if (!settle(i, top, block, arena)) block.pending[still++] = i;
  }
  block.pending.resize(still);
}

Status ActiveSet::iterate(const Poll& poll, Index iterations) {
  if (blocks_stale_) prepare_blocks();
  return together(listed_ >= kIterateTogether, [&] { return iterate_shared(poll, iterations); });
}

Status ActiveSet::iterate_shared(const Poll& poll, Index iterations) {
  while (true) {
    if (!mid_iteration_) {
      if (t_ == settings_.max_iter) return Status::exhausted;
      begin_iteration();
    }
    share(static_cast<Index>(blocks_.size()), [&](Index piece, std::size_t thread) {
      const Index first = piece * block_rows_;
      run_block(blocks_[static_cast<std::size_t>(piece)], first, std::min(n_, first + block_rows_),
                arenas_[thread]);
    });
    mid_iteration_ = true;
    if (poll()) return Status::interrupted;
    starving_ = std::accumulate(blocks_.begin(), blocks_.end(), Index{0},
                                [](Index sum, const Block& block) {
                                  return sum + static_cast<Index>(block.pending.size());
                                });
    if (starving_ > 0) return Status::starved;
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
    for (Index i : block.pending) projected += rows_[static_cast<std::size_t>(i)].known();
  return projected > n_ * std::max(kAlwaysSparse, n_ / kCrowdedShare);
}

Index ActiveSet::longest() const {
  Index most = 0;
  for (const Row& row : rows_) most = std::max(most, row.known());
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
    for (Index e = 0; e < std::min<Index>(row.size, row.backed * Octet::width); ++e)
      a[row.column(e)] = static_cast<T>(row.a(e));
    for (Index e = 0; e < row.peak_count; ++e) {
      const Peaks& group = row.peaks[e / Peaks::width];
      const Index place = e % Peaks::width;
      r[group.column[place]] = static_cast<T>(group.r[place]);
      a[group.column[place]] = static_cast<T>(group.a[place]);
    }
  }
  return done;
}

template <class T>
Outcome solve_matrix(ActiveSet& lists, const T* S, bool dense_fits, const Poll& poll) {
  const Index n = lists.size();
  const RowSource<T> source{S, n, true};
  const Index chunk = std::max<Index>(1, kSelectionChunk / n);
  const Status status = lists.together(n * n >= kSelectTogether, [&] {
    for (Index first = 0; first < n; first += chunk) {
      Indices rows(static_cast<std::size_t>(std::min(chunk, n - first)));
      std::iota(rows.begin(), rows.end(), first);
      lists.extend(rows, source, Refinement<T>{});
      if (poll()) return Status::interrupted;
    }
    while (true) {
      const Status reached = lists.iterate(poll);
      if (reached != Status::starved || lists.crowded()) return reached;
      lists.extend(lists.starved(), source, Refinement<T>{});
    }
  });
  if (status != Status::starved) return lists.outcome(status);
  if (!dense_fits) throw std::bad_alloc();
  const Settings& settings = lists.settings();
  Dense<T> dense(n, S, n, lists.jitter(), lists.diagonal(), settings);
  dense.complete_iteration(lists.expand(dense));
  const Index t = lists.iteration();
  if (dense.diagonal().finish_iteration(t, settings))
    return {dense.diagonal().is_exemplar, t + 1, Status::converged};
  return dense.iterate(t + 1, poll);
}

template void ActiveSet::extend<float>(const Indices&, const RowSource<float>&,
                                       const Refinement<float>&, float*);
template void ActiveSet::extend<double>(const Indices&, const RowSource<double>&,
                                        const Refinement<double>&, double*);
template void ActiveSet::adopt<float>(const Nearest<float>&, const Refinement<float>&);
template void ActiveSet::adopt<double>(const Nearest<double>&, const Refinement<double>&);
template std::vector<std::uint8_t> ActiveSet::expand<float>(Dense<float>&) const;
template std::vector<std::uint8_t> ActiveSet::expand<double>(Dense<double>&) const;
template Outcome solve_matrix<float>(ActiveSet&, const float*, bool, const Poll&);
template Outcome solve_matrix<double>(ActiveSet&, const double*, bool, const Poll&);

}  // namespace epruner
