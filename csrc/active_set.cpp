#include "active_set.hpp"

#include <atomic>

#include "quantiles.hpp"

namespace epruner {
namespace {

constexpr Index kLeastBlock = 64, kMostBlocks = 32;  // rows of a block, and how many of them
// Candidates from where threads iterate over them, or assign points by them, faster than one.
constexpr Index kIterateTogether = 16384;
constexpr Index kAssignTogether = Index{1} << 20;
constexpr Index kSumTogether = Index{1} << 17;  // entries of support_
constexpr Index kColumnsAtOnce = 4096;          // that a thread sums
// After each burst of a row, one in so many of its pairs more are worth listing instead.
constexpr Index kBurstShare = 64;
// What a new candidate of a row and the reading of its similarities cost, in looks at a pair.
constexpr Index kCandidateCost = 8, kReadingShare = 16;
constexpr std::uint8_t kMostBursts = 255;

}  // namespace

ActiveSet::ActiveSet(Index n, const double* preference, const Jitter& jitter,
                     const Settings& settings)
    : n_(n),
      jitter_(jitter),
      settings_(settings),
      diagonal_(n, preference, jitter),
      candidates_(n, jitter, settings.threads),
      prominent_(n),
      workers_(settings.threads),
      states_(as_size(n)),
      mu_(as_size(n)),
      abar_(as_size(n)),
      abar_before_(as_size(n)),
      block_rows_(std::max(kLeastBlock, (n + kMostBlocks - 1) / kMostBlocks)) {
  for (Index first = 0; first < n; first += block_rows_) {
    blocks_.push_back({{}, first, std::min(n, first + block_rows_)});
    blocks_.back().waiting.reserve(as_size(block_rows_));
  }
  support_.resize(blocks_.size() * as_size(n));
}

void ActiveSet::restart(const double* preference, double damping) {
  settings_.damping = damping;
  diagonal_ = Diagonal(n_, preference, jitter_);
  std::fill(mu_.begin(), mu_.end(), 0.0);
  std::fill(abar_.begin(), abar_.end(), 0.0);
  std::fill(states_.begin(), states_.end(), RowState{});
  std::fill(support_.begin(), support_.end(), 0.0);
  candidates_.reset();
  prominent_.clear();
  grown_ = 0;
  t_ = 0;
  mid_iteration_ = false;
}

// The closed forms hold for any sequence of dampings.
void ActiveSet::continue_with(const double* preference, double damping) {
  settings_.damping = damping;
  diagonal_.set_preference(preference, jitter_);
  for (RowState& state : states_) state.burst_at = state.burst_at == t_ - 1 ? -1 : kNever;
  t_ = 0;
}

void ActiveSet::assign(const Indices& position, Indices& labels) const {
  candidates_.assign(position, labels, n_candidates_ < kAssignTogether ? 1 : settings_.threads);
}

// abar from the last iteration's totals: the availability of every pair that holds no message.
void ActiveSet::begin_iteration() {
  std::swap(abar_, abar_before_);
  const ColumnBounds bounds = renew_availability(n_, settings_.damping, diagonal_.total.data(),
                                                 abar_before_.data(), abar_.data());
  abar_max_ = bounds.availability;
  total_min_ = bounds.total;
  prominent_.update(abar_.data());
  if (!prominent_.columns().empty()) leave_out_prominent();
  for (RowBlock& block : blocks_) block.waiting.clear();
}

// From the bound on abar.
void ActiveSet::leave_out_prominent() {
  abar_max_ = minus_infinity<double>;
  for (Index k = 0; k < n_; ++k)
    if (!prominent_[k]) abar_max_ = std::max(abar_max_, abar_[as_size(k)]);
}

// Lists lie apart in memory, which the hardware does not foresee.
void ActiveSet::prefetch(const Row& row) {
  const auto* line = reinterpret_cast<const char*>(row.active);
  const auto* end = reinterpret_cast<const char*>(row.inactive + row.n_stored_blocks);
  for (; line < end; line += 64) prefetch_line<true>(line);
}

// Bring row i to this iteration. Returns false if it lacks something; `again` says that it did, and
// was given it.
bool ActiveSet::run_row(Index i, bool again, double* support, const Source& source, Arena& arena) {
  const auto own = as_size(i);
  Row& row = candidates_[i];
  RowState& state = states_[own];
  const ClosedForm before = closed_form(i);
  const bool updated = again && state.lack != Lack::look;
  if (!again && state.burst_at == t_ - 1 &&
      before.grown * row.unlisted - before.mu > std::max(0.0, total_min_)) {
    state.lack = Lack::look;
    return false;
  }
  if (!updated)
    row.store_availability(candidates_to_store(diagonal_.total.data(), before, row),
                           abar_before_.data());
  const Rest rest{row.unlisted, state.burst_at == t_, prominent_.bounds(i)};
  RowPass pass = pass_row(terms(), before, self(i), rest, row, support, updated);
  while (pass.state == RowPass::needs_prominent) {
    activate_prominent(i, pass.top.second, source, arena);
    pass = pass_row(terms(), before, self(i), rest, row, support, true);
  }
  if (pass.state == RowPass::needs_candidates || pass.state == RowPass::unlisted_positives) {
    state.lack = pass.state == RowPass::needs_candidates ? Lack::candidates : Lack::positives;
    state.most = pass.top.second - row.unlisted;
    return false;
  }
  const ClosedForm now = before.after(settings_.damping, pass.top.first);
  if (pass.state == RowPass::new_maximum) {
    const Index e = row.find(pass.top.first, abar_.data());
    const double r = settings_.damping * (before.grown * row.s(e) - before.mu) +
                     (1 - settings_.damping) * (row.s(e) - pass.top.second);
    if (r > 0) support[row.column(e)] += r;
    row.activate(e, r, abar_.data(), arena);
    add_inactive_positives(now, row, support);
  }
  mu_[own] = now.mu;
  diagonal_.update_responsibility(own, settings_.damping, pass.top);
  return true;
}

// All rows of a block, or those that wait. Those that need candidates go on waiting unless they may
// `extend` their lists.
void ActiveSet::run_block(RowBlock& block, const Source& source, bool extend, std::size_t thread) {
  double* support = support_of(block.first);
  Arena& arena = candidates_.arena(thread);
  const auto finish = [&](Index i, bool again) {
    bool done = run_row(i, again, support, source, arena);
    while (!done && source.refill && (extend || states_[as_size(i)].lack != Lack::candidates)) {
      source.refill(i, support, thread);
      done = run_row(i, true, support, source, arena);
    }
    return done;
  };
  if (mid_iteration_) {
    std::size_t still = 0;
    for (std::size_t q = 0; q < block.waiting.size(); ++q)
      if (const Index i = block.waiting[q]; !finish(i, true)) block.waiting[still++] = i;
    block.waiting.resize(still);
    return;
  }
  for (Index i = block.first; i < block.last; ++i) {
    prefetch(candidates_[std::min(i + 1, block.last - 1)]);
    if (!finish(i, false)) block.waiting.push_back(i);
  }
}

// A burst has summed unlisted pairs without a look at which of them must hold A from now on: list
// those, if there are any.
template <class T>
void ActiveSet::look_after_burst(Index i, const T* x, const Refinement<T>& refinement,
                                 Scratch<T>& scratch, Arena& arena) {
  Row& row = candidates_[i];
  const ClosedForm r = closed_form(i);
  const auto uncertainty = [&](double s) { return candidates_.uncertainty(i, s, refinement); };
  // Those with R > 0 lie between these two.
  const double over = candidates_.mostly_listed_from(i, refinement),
               least_positive = r.mu / r.grown;
  const double margin = std::max(uncertainty(row.below), uncertainty(least_positive));
  const double* total = diagonal_.total.data();
  const Index rest = i + 1;
  const double least =
      std::min(least_exceeding(i, x, over, margin, r, total),
               least_exceeding(n_ - rest, x + rest, over, margin, r, total + rest));
  if (std::isinf(least)) return;
  candidates_.extend_to(i, x, static_cast<T>(least - 3 * uncertainty(least)), refinement,
                        abar_before_.data(), scratch, arena);
  row.n_positive = row.n_inactive;
}

// Unlisted pairs may have R > 0. List them where they are few for what the row has cost so far,
// else sum them.
template <class T>
void ActiveSet::list_or_burst(Index i, const T* x, const Refinement<T>& refinement, double* support,
                              Scratch<T>& scratch, Arena& arena) {
  Row& row = candidates_[i];
  RowState& state = states_[as_size(i)];
  const ClosedForm before = closed_form(i);
  const Top2<double> top = candidate_top(terms(), self(i), row);
  const ClosedForm now = before.after(settings_.damping, top.first);
  const Index positives =
      count_between(n_, x, static_cast<T>(now.mu / now.grown), static_cast<T>(row.below));
  const Index want = candidates_.next_want(i);
  if (positives <= std::max(want, state.bursts * n_ / kBurstShare)) {
    candidates_.extend(i, x, std::max(want, positives), refinement, abar_.data(), scratch, arena);
    return;
  }
  std::size_t listed = 0;
  double* saved = scratch.saved.data();
  row.each_column([&](Column k) { saved[listed++] = support[k]; });
  const double own = support[i];
  add_positives(n_, x, jitter_, i, now, support);
  listed = 0;
  row.each_column([&](Column k) { support[k] = saved[listed++]; });
  support[i] = own;
  state.burst_at = t_;
  if (state.bursts < kMostBursts) ++state.bursts;
}

// Give point i, whose row is x, what it lacks. False where x holds what is no similarity.
template <class T>
bool ActiveSet::refill_row(Index i, const T* x, const Refinement<T>& refinement, double* support,
                           Scratch<T>& scratch, Arena& arena) {
  switch (states_[as_size(i)].lack) {
    case Lack::look:
      look_after_burst(i, x, refinement, scratch, arena);
      return true;
    case Lack::positives:
      list_or_burst(i, x, refinement, support, scratch, arena);
      return true;
    default:
      return candidates_.extend(i, x, candidates_.next_want(i), refinement, abar_.data(), scratch,
                                arena);
  }
}

template <class T>
void ActiveSet::refill(const Indices& rows, const RowSource<T>& source,
                       const Refinement<T>& refinement, T* medians) {
  Scratches<T> scratches(n_, settings_.threads);
  std::atomic<bool> invalid{false};
  const auto refill_point = [&](std::size_t q, std::size_t thread) {
    Scratch<T>& scratch = scratches[thread];
    const Index i = rows[q];
    const T* x = source.row(static_cast<Index>(q), i, scratch.row.data());
    if (!refill_row(i, x, refinement, support_of(i), scratch, candidates_.arena(thread)))
      invalid.store(true, std::memory_order_relaxed);
    if (!medians) return;
    if (x != scratch.row.data()) std::copy_n(x, n_, scratch.row.data());
    scratch.row[as_size(i)] = static_cast<T>((*refinement.exact)(i, i));
    medians[q] = median(scratch.row.data(), n_, scratch.columns);
  };
  // The rows of a block are in one thread's hands, as they share its support.
  workers_.together(static_cast<Index>(rows.size()) * n_ >= kSelectTogether, [&] {
    workers_.share(static_cast<Index>(blocks_.size()), [&](Index piece, std::size_t thread) {
      const RowBlock& block = blocks_[as_size(piece)];
      const auto at = [&](Index i) {
        return as_size(std::lower_bound(rows.begin(), rows.end(), i) - rows.begin());
      };
      for (std::size_t q = at(block.first); q < at(block.last); ++q) refill_point(q, thread);
    });
    return true;
  });
  if (invalid) throw not_similarities();
}

Status ActiveSet::iterate(const Poll& poll, Index iterations) {
  return iterate_with({}, poll, iterations);
}

template <class T>
Status ActiveSet::iterate(const T* S, const Poll& poll, Index iterations) {
  Scratches<T> scratches(n_, settings_.threads);
  const Refinement<T> exact;
  const auto refill = [&](Index i, double* support, std::size_t thread) {
    refill_row(i, S + i * n_, exact, support, scratches[thread], candidates_.arena(thread));
  };
  const auto similarities = [&](Index i, const Column* columns, Index count, double* out) {
    for (Index q = 0; q < count; ++q) out[q] = static_cast<double>(S[i * n_ + columns[q]]);
  };
  return iterate_with({refill, similarities}, poll, iterations);
}

template <class T>
Status ActiveSet::iterate(const Features<T>& features, const Poll& poll, Index iterations) {
  const auto similarities = [&](Index i, const Column* columns, Index count, double* out) {
    for (Index q = 0; q < count; ++q) out[q] = features(i, columns[q]);
  };
  return iterate_with({{}, similarities}, poll, iterations);
}

Status ActiveSet::iterate_with(const Source& source, const Poll& poll, Index iterations) {
  n_candidates_ = 0;
  for (Index i = 0; i < n_; ++i) n_candidates_ += candidates_[i].size();
  return workers_.together(n_candidates_ >= kIterateTogether,
                           [&] { return iterate_shared(source, poll, iterations); });
}

// Whether every row has finished this iteration.
bool ActiveSet::none_waits() const {
  return std::all_of(blocks_.begin(), blocks_.end(),
                     [](const RowBlock& block) { return block.waiting.empty(); });
}

// Look at columns one by one because of which many rows need candidates. Returns whether there are
// any.
bool ActiveSet::promote(const Source& source) {
  std::vector<ProminentColumns::Demand> demands;
  for (const RowBlock& block : blocks_)
    for (Index i : block.waiting)
      if (const RowState& state = states_[as_size(i)]; state.lack == Lack::candidates)
        demands.push_back(
            {state.most, kCandidateCost * candidates_.next_want(i) + n_ / kReadingShare});
  const Index known = prominent_.add(abar_.data(), std::move(demands));
  const std::vector<Column>& columns = prominent_.columns();
  if (known == static_cast<Index>(columns.size())) return false;
  workers_.share(static_cast<Index>(blocks_.size()), [&](Index piece, std::size_t) {
    const RowBlock& block = blocks_[as_size(piece)];
    const Column* own = columns.data() + known;
    const auto count = static_cast<Index>(columns.size()) - known;
    std::vector<double> s(as_size(count));
    for (Index i = block.first; i < block.last; ++i) {
      source.similarities(i, own, count, s.data());
      float* bounds = prominent_.bounds(i) + known;
      for (Index q = 0; q < count; ++q)
        if (own[q] != i) bounds[q] = rounded_up(jitter_.ceiling(s[as_size(q)]));
    }
  });
  leave_out_prominent();
  return true;
}

// Make row i's pairs in prominent columns active that may be its maximum, wherever they stand in
// its order.
void ActiveSet::activate_prominent(Index i, double second, const Source& source, Arena& arena) {
  Row& row = candidates_[i];
  const ClosedForm r = closed_form(i);
  float* bounds = prominent_.bounds(i);
  const std::vector<Column>& columns = prominent_.columns();
  for (std::size_t q = 0; q < columns.size(); ++q) {
    if (!may_exceed(bounds[q] + prominent_.availability()[q], second)) continue;
    bounds[q] = minus_infinity<float>;
    const Column k = columns[q];
    if (row.has_active(k)) continue;
    if (const Index e = row.inactive_at(k); e < row.n_inactive) {
      row.activate(e, r.grown * row.s(e) - r.mu, abar_.data(), arena);
      continue;
    }
    double s;
    source.similarities(i, &k, 1, &s);
    s = jitter_(s, i, k);
    row.add_active(s, r.grown * s - r.mu, abar_[as_size(k)], k, arena);
  }
}

Status ActiveSet::iterate_shared(const Source& source, const Poll& poll, Index iterations) {
  while (true) {
    if (!mid_iteration_) {
      if (t_ == settings_.max_iter) return Status::exhausted;
      begin_iteration();
    }
    for (bool extend = false;;) {
      workers_.share(static_cast<Index>(blocks_.size()), [&](Index piece, std::size_t thread) {
        run_block(blocks_[as_size(piece)], source, extend, thread);
      });
      mid_iteration_ = true;
      if (poll()) return Status::interrupted;
      if (none_waits()) break;
      if (source.similarities && promote(source)) continue;
      if (!source.refill) return Status::needs_candidates;
      extend = true;
    }
    sum_support();
    mid_iteration_ = false;
    grown_ = settings_.damping * grown_ + (1 - settings_.damping);
    if (diagonal_.finish_iteration(t_++, settings_)) return Status::converged;
    if (--iterations == 0) return Status::running;
  }
}

// The blocks' sums in their order, which are taken back for the next iteration.
void ActiveSet::sum_support() {
  const auto sum = [&](Index first, Index last) {
    double* all = diagonal_.support.data();
    std::copy(support_.begin() + first, support_.begin() + last, all + first);
    for (std::size_t q = 0; q < blocks_.size(); ++q) {
      double* own = support_.data() + static_cast<Index>(q) * n_;
      for (Index k = first; q > 0 && k < last; ++k) all[k] += own[k];
      std::fill(own + first, own + last, 0.0);
    }
  };
  if (static_cast<Index>(support_.size()) < kSumTogether) return sum(0, n_);
  workers_.share((n_ + kColumnsAtOnce - 1) / kColumnsAtOnce, [&](Index piece, std::size_t) {
    const Index first = piece * kColumnsAtOnce;
    sum(first, std::min(n_, first + kColumnsAtOnce));
  });
}

Indices ActiveSet::rows_needing_candidates() const {
  Indices rows;
  for (const RowBlock& block : blocks_)
    rows.insert(rows.end(), block.waiting.begin(), block.waiting.end());
  return rows;
}

Index ActiveSet::n_candidates_needed() const {
  Index needed = 0;
  for (Index i : rows_needing_candidates())
    needed += candidates_[i].size() + candidates_.next_want(i);
  return needed;
}

Outcome ActiveSet::outcome(Status status) const { return {diagonal_.is_exemplar, t_, status}; }

#define EPRUNER_INSTANTIATE(T)                                                                  \
  template void ActiveSet::refill<T>(const Indices&, const RowSource<T>&, const Refinement<T>&, \
                                     T*);                                                       \
  template Status ActiveSet::iterate<T>(const T*, const Poll&, Index);                          \
  template Status ActiveSet::iterate<T>(const Features<T>&, const Poll&, Index);
EPRUNER_INSTANTIATE(float)
EPRUNER_INSTANTIATE(double)

}  // namespace epruner
