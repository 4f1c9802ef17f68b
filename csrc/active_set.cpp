#include "active_set.hpp"

#include <numeric>

namespace epruner {
namespace {

constexpr Index kSteadyFrom = 2;  // iterations; the first look at more candidates than later ones
constexpr Index kAlwaysSparse = 48;  // lists of this length are never worth a dense pass
// Candidates from where threads iterate over them, or assign points by them, faster than one.
constexpr Index kIterateTogether = 4096;
constexpr Index kAssignTogether = Index{1} << 20;

}  // namespace

ActiveSet::ActiveSet(Index n, const double* preference, const Jitter& jitter,
                     const Settings& settings)
    : n_(n),
      jitter_(jitter),
      settings_(settings),
      diagonal_(n, preference, jitter),
      candidates_(n, jitter, settings.threads),
      workers_(settings.threads),
      mu_(as_size(n)),
      abar_(as_size(n)),
      block_rows_(std::max<Index>(32, n / 256)),
      blocks_(as_size((n + block_rows_ - 1) / block_rows_)) {
  for (RowBlock& block : blocks_) block.pending.reserve(as_size(block_rows_));
}

void ActiveSet::restart(const double* preference, double damping) {
  settings_.damping = damping;
  diagonal_ = Diagonal(n_, preference, jitter_);
  std::fill(mu_.begin(), mu_.end(), 0.0);
  std::fill(abar_.begin(), abar_.end(), 0.0);
  candidates_.reset();
  decay_ = 1;
  t_ = 0;
  n_pending_ = 0;
  mid_iteration_ = false;
}

void ActiveSet::assign(const Indices& position, Indices& labels) const {
  candidates_.assign(position, labels, n_candidates_ < kAssignTogether ? 1 : settings_.threads);
}

void ActiveSet::prepare_blocks() {
  n_candidates_ = 0;
  for (std::size_t q = 0; q < blocks_.size(); ++q) {
    const Index first = static_cast<Index>(q) * block_rows_;
    Index room = 0;
    for (Index i = first; i < std::min(n_, first + block_rows_); ++i) room += candidates_[i].size();
    n_candidates_ += room;
    room += CandidateBlock::width;  // positives are written some at a time
    blocks_[q].column.resize(as_size(room));
    blocks_[q].value.resize(as_size(room));
  }
}

// abar from the last iteration's totals: the availability of every pair that holds no message.
void ActiveSet::begin_iteration() {
  const double damping = settings_.damping;
  abar_max_ = minus_infinity<double>;
  for (std::size_t k = 0; k < abar_.size(); ++k) {
    abar_[k] = damping * abar_[k] + (1 - damping) * std::min(0.0, diagonal_.total[k]);
    abar_max_ = std::max(abar_max_, abar_[k]);
  }
  for (RowBlock& block : blocks_) {
    block.positives = 0;
    block.pending.clear();
  }
}

// R of point i's pairs before this iteration.
ClosedForm ActiveSet::closed_form(Index i) const { return {1 - decay_, mu_[as_size(i)]}; }

// Update the row's responsibilities. Returns false when the row needs candidates that it does not
// have.
bool ActiveSet::update_responsibilities(Index i, const RowTop& top, RowBlock& block, Arena& arena) {
  const double damping = settings_.damping;
  const auto own = as_size(i);
  Row& row = candidates_[i];
  const auto [first, second] = top.values;
  const ClosedForm before = closed_form(i);
  const ClosedForm now{1 - decay_ * damping, damping * before.mu + (1 - damping) * first};
  if (row.unlisted + abar_max_ > second || now.grown * row.unlisted > now.mu) return false;
  if (!top.is_active) row.activate(first, abar_.data(), before, arena);
  mu_[own] = now.mu;
  diagonal_.update_responsibility(own, damping, top.values);
  const Positives found = candidate_responsibilities(damping, top.values, now, row,
                                                     block.column.data() + block.positives,
                                                     block.value.data() + block.positives);
  block.positives += found.all;
  // What is looked at in every iteration is cheaper to store.
  const Index stored = row.n_stored();
  const bool again = t_ >= kSteadyFrom && row.s(stored) + abar_max_ > second;
  if (found.inactive > stored || again)
    row.store_availability(std::max(found.inactive, stored + (again ? 1 : 0)), abar_.data());
  return true;
}

// Lists lie apart in memory, which the hardware does not foresee.
void ActiveSet::prefetch(const Row& row) {
  const auto* line = reinterpret_cast<const char*>(row.active);
  const auto* end = reinterpret_cast<const char*>(row.inactive + row.n_stored_blocks);
  for (; line < end; line += 64) prefetch_line(line);
}

void ActiveSet::run_block(RowBlock& block, Index first, Index last, Arena& arena) {
  const IterationTerms terms{settings_.damping, diagonal_.total.data(), abar_.data(), abar_max_};
  const auto self = [&](Index i) {
    const auto own = as_size(i);
    return diagonal_.a[own] + diagonal_.preference[own];
  };
  if (!mid_iteration_) {
    for (Index i = first; i < last; ++i) {
      prefetch(candidates_[std::min(i + 1, last - 1)]);
      const RowTop top = candidate_availabilities(terms, closed_form(i), self(i), candidates_[i]);
      if (!update_responsibilities(i, top, block, arena)) block.pending.push_back(i);
    }
    return;
  }
  std::size_t still = 0;
  for (std::size_t q = 0; q < block.pending.size(); ++q) {
    const Index i = block.pending[q];
    const RowTop top = candidate_top(terms, self(i), candidates_[i]);
    if (!update_responsibilities(i, top, block, arena)) block.pending[still++] = i;
  }
  block.pending.resize(still);
}

Status ActiveSet::iterate(const Poll& poll, Index iterations) {
  prepare_blocks();
  return workers_.together(n_candidates_ >= kIterateTogether,
                           [&] { return iterate_shared(poll, iterations); });
}

Status ActiveSet::iterate_shared(const Poll& poll, Index iterations) {
  while (true) {
    if (!mid_iteration_) {
      if (t_ == settings_.max_iter) return Status::exhausted;
      begin_iteration();
    }
    workers_.share(static_cast<Index>(blocks_.size()), [&](Index piece, std::size_t thread) {
      const Index first = piece * block_rows_;
      run_block(blocks_[as_size(piece)], first, std::min(n_, first + block_rows_),
                candidates_.arena(thread));
    });
    mid_iteration_ = true;
    if (poll()) return Status::interrupted;
    n_pending_ = std::accumulate(blocks_.begin(), blocks_.end(), Index{0},
                                 [](Index sum, const RowBlock& block) {
                                   return sum + static_cast<Index>(block.pending.size());
                                 });
    if (n_pending_ > 0) return Status::needs_candidates;
    std::fill(diagonal_.support.begin(), diagonal_.support.end(), 0.0);
    for (const RowBlock& block : blocks_)
      for (Index q = 0; q < block.positives; ++q)
        diagonal_.support[as_size(block.column[as_size(q)])] += block.value[as_size(q)];
    mid_iteration_ = false;
    decay_ *= settings_.damping;
    if (diagonal_.finish_iteration(t_++, settings_)) return Status::converged;
    if (--iterations == 0) return Status::running;
  }
}

Indices ActiveSet::rows_needing_candidates() const {
  Indices rows;
  for (const RowBlock& block : blocks_)
    rows.insert(rows.end(), block.pending.begin(), block.pending.end());
  return rows;
}

bool ActiveSet::crowded() const {
  Index projected = n_candidates_;
  for (const RowBlock& block : blocks_)
    for (Index i : block.pending) projected += candidates_[i].size();
  return projected > n_ * std::max(kAlwaysSparse, n_ / kCrowdedShare);
}

Outcome ActiveSet::outcome(Status status) const { return {diagonal_.is_exemplar, t_, status}; }

template <class T>
std::vector<std::uint8_t> ActiveSet::expand(Dense<T>& dense) const {
  std::vector<std::uint8_t> done(mu_.size(), 1);
  for (const RowBlock& block : blocks_)
    for (Index i : block.pending) done[as_size(i)] = 0;
#pragma omp parallel for schedule(static) num_threads(settings_.threads)
  for (Index i = 0; i < n_; ++i) {
    const auto own = as_size(i);
    const Row& row = candidates_[i];
    const double grown = 1 - (done[own] ? decay_ * settings_.damping : decay_);
    const T* s = dense.s(i);
    T *r = dense.r(i), *a = dense.a(i);
    for (Index k = 0; k < n_; ++k) {
      r[k] = grown > 0 ? static_cast<T>(grown * static_cast<double>(s[k]) - mu_[own]) : T(0);
      a[k] = static_cast<T>(abar_[as_size(k)]);
    }
    for (Index e = 0; e < std::min<Index>(row.n_inactive, row.n_stored()); ++e)
      a[row.column(e)] = static_cast<T>(row.a(e));
    for (Index e = 0; e < row.n_active; ++e) {
      const ActiveBlock& block = row.active[e / ActiveBlock::width];
      const Index place = e % ActiveBlock::width;
      r[block.column[place]] = static_cast<T>(block.r[place]);
      a[block.column[place]] = static_cast<T>(block.a[place]);
    }
  }
  return done;
}

template std::vector<std::uint8_t> ActiveSet::expand<float>(Dense<float>&) const;
template std::vector<std::uint8_t> ActiveSet::expand<double>(Dense<double>&) const;

}  // namespace epruner
