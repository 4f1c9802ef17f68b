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

Index ActiveSet::block_rows(Index n) {
  return std::max(kLeastBlock, (n + kMostBlocks - 1) / kMostBlocks);
}

ActiveSet::ActiveSet(Index n, Range points, const double* preference, const Jitter& jitter,
                     const Settings& settings)
    : n_(n),
      points_(points),
      jitter_(jitter),
      settings_(settings),
      diagonal_(n, points, preference, jitter),
      candidates_(n, points, jitter, settings.threads),
      prominent_(n, points.size()),
      workers_(settings.threads),
      states_(as_size(points.size())),
      mu_(as_size(points.size())),
      abar_(as_size(n)),
      abar_before_(as_size(n)),
      block_rows_(block_rows(n)) {
  for (Index first = points.first; first < points.last; first += block_rows_) {
    blocks_.push_back({{}, first, std::min(points.last, first + block_rows_)});
    blocks_.back().waiting.reserve(as_size(block_rows_));
  }
  support_.resize(blocks_.size() * as_size(n));
}

void ActiveSet::restart(const double* preference, double damping) {
  settings_.damping = damping;
  diagonal_ = Diagonal(n_, points_, preference, jitter_);
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

ActiveSet::Saved ActiveSet::save() const {
  std::vector<double> most, below, unlisted;
  std::vector<std::uint8_t> lack, bursts;
  std::vector<Index> burst_at, n_active, n_inactive, n_stored_blocks, n_positive;
  CandidateList::Saved active, inactive;
  std::vector<float> bounds;
  const Index columns = static_cast<Index>(prominent_.columns().size());
  for (Index i = points_.first; i < points_.last; ++i) {
    const RowState& state = states_[at(i)];
    lack.push_back(static_cast<std::uint8_t>(state.lack));
    bursts.push_back(state.bursts);
    burst_at.push_back(state.burst_at);
    most.push_back(state.most);
    const Row& row = candidates_[i];
    below.push_back(row.below);
    unlisted.push_back(row.unlisted);
    n_active.push_back(row.n_active);
    n_inactive.push_back(row.n_inactive);
    n_stored_blocks.push_back(row.n_stored_blocks);
    n_positive.push_back(row.n_positive);
    row.save(active, inactive);
    const float* own = prominent_.bounds(i - points_.first);
    bounds.insert(bounds.end(), own, own + columns);
  }
  return {{"iteration", std::vector<Index>{t_}},
          {"numbers", std::vector<double>{grown_, settings_.damping}},
          {"prominent", prominent_.columns()},
          {"total", diagonal_.total},
          {"availability", abar_},
          {"preference", diagonal_.preference},
          {"own_availability", diagonal_.a},
          {"own_responsibility", diagonal_.r},
          {"is_exemplar", diagonal_.is_exemplar},
          {"streak", diagonal_.streak},
          {"mu", mu_},
          {"lack", lack},
          {"bursts", bursts},
          {"burst_at", burst_at},
          {"most", most},
          {"below", below},
          {"unlisted", unlisted},
          {"n_active", n_active},
          {"n_inactive", n_inactive},
          {"n_stored_blocks", n_stored_blocks},
          {"n_positive", n_positive},
          {"active_s", active.s},
          {"active_r", active.r},
          {"active_a", active.a},
          {"active_column", active.column},
          {"inactive_s", inactive.s},
          {"inactive_a", inactive.a},
          {"inactive_column", inactive.column},
          {"bounds", bounds}};
}

namespace {

// The values of a name, so many of them or, where that is negative, any number.
template <class U>
const std::vector<U>& named(const ActiveSet::Saved& saved, const char* name, Index count) {
  const auto found = saved.find(name);
  const auto* values = found == saved.end() ? nullptr : std::get_if<std::vector<U>>(&found->second);
  if (!values || (count >= 0 && static_cast<Index>(values->size()) != count))
    throw std::invalid_argument(std::string("no messages of such points: ") + name);
  return *values;
}

Index sum(const std::vector<Index>& counts) {
  Index total = 0;
  for (Index count : counts) {
    if (count < 0) throw std::invalid_argument("no messages of such points: lists");
    total += count;
  }
  return total;
}

}  // namespace

void ActiveSet::restore(const Saved& saved) {
  const Index m = points_.size();
  const auto& numbers = named<double>(saved, "numbers", 2);
  const auto& prominent = named<Column>(saved, "prominent", -1);
  const auto& bounds = named<float>(saved, "bounds", m * static_cast<Index>(prominent.size()));
  const auto& n_active = named<Index>(saved, "n_active", m);
  const auto& n_inactive = named<Index>(saved, "n_inactive", m);
  const auto& n_stored_blocks = named<Index>(saved, "n_stored_blocks", m);
  const auto& n_positive = named<Index>(saved, "n_positive", m);
  const Index all_active = sum(n_active), all_inactive = sum(n_inactive);
  const CandidateList::Saved active{named<double>(saved, "active_s", all_active),
                                    named<double>(saved, "active_r", all_active),
                                    named<double>(saved, "active_a", all_active),
                                    named<Column>(saved, "active_column", all_active)};
  const CandidateList::Saved inactive{named<double>(saved, "inactive_s", all_inactive),
                                      {},
                                      named<double>(saved, "inactive_a", all_inactive),
                                      named<Column>(saved, "inactive_column", all_inactive)};
  for (const auto* columns : {&active.column, &inactive.column, &prominent})
    for (Column k : *columns)
      if (k < 0 || k >= n_) throw std::invalid_argument("no messages of such points: columns");
  const auto& lack = named<std::uint8_t>(saved, "lack", m);
  const auto& bursts = named<std::uint8_t>(saved, "bursts", m);
  const auto& burst_at = named<Index>(saved, "burst_at", m);
  const auto& most = named<double>(saved, "most", m);
  const auto& below = named<double>(saved, "below", m);
  const auto& unlisted = named<double>(saved, "unlisted", m);
  t_ = named<Index>(saved, "iteration", 1).front();
  grown_ = numbers[0];
  settings_.damping = numbers[1];
  mid_iteration_ = false;
  diagonal_.total = named<double>(saved, "total", n_);
  abar_ = named<double>(saved, "availability", n_);
  diagonal_.preference = named<double>(saved, "preference", m);
  diagonal_.a = named<double>(saved, "own_availability", m);
  diagonal_.r = named<double>(saved, "own_responsibility", m);
  diagonal_.is_exemplar = named<std::uint8_t>(saved, "is_exemplar", m);
  diagonal_.streak = named<Index>(saved, "streak", m);
  mu_ = named<double>(saved, "mu", m);
  std::fill(support_.begin(), support_.end(), 0.0);
  candidates_ = CandidateLists(n_, points_, jitter_, settings_.threads);
  prominent_.restore(prominent);
  std::size_t active_from = 0, inactive_from = 0;
  const auto columns = static_cast<Index>(prominent.size());
  for (Index i = points_.first; i < points_.last; ++i) {
    const std::size_t q = at(i);
    if (lack[q] > static_cast<std::uint8_t>(Lack::positives) || n_positive[q] < 0 ||
        n_positive[q] > n_inactive[q] || n_stored_blocks[q] < 0 ||
        n_stored_blocks[q] > (n_active[q] + n_inactive[q]) / CandidateBlock::width + 1)
      throw std::invalid_argument("no messages of such points: rows");
    states_[q] = {static_cast<Lack>(lack[q]), bursts[q], burst_at[q], most[q]};
    Row& row = candidates_[i];
    row.restore(n_active[q], active, active_from, n_inactive[q], inactive, inactive_from,
                candidates_.arena(0));
    row.n_stored_blocks = static_cast<std::int32_t>(n_stored_blocks[q]);
    row.n_positive = static_cast<std::int32_t>(n_positive[q]);
    row.below = below[q];
    row.unlisted = unlisted[q];
    active_from += as_size(n_active[q]);
    inactive_from += as_size(n_inactive[q]);
    std::copy_n(bounds.begin() + static_cast<Index>(q) * columns, columns,
                prominent_.bounds(i - points_.first));
  }
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
  const std::size_t own = at(i);
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
  const Rest rest{row.unlisted, state.burst_at == t_, prominent_.bounds(i - points_.first)};
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
    while (!done && source.refill && (extend || states_[at(i)].lack != Lack::candidates)) {
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

// A burst has summed unlisted pairs without a look at which of them must hold A from now on: the
// least similarity of such a pair; +inf if there is none.
template <class T>
double ActiveSet::least_to_look_at(Index i, const T* x, const Refinement<T>& refinement) const {
  const Row& row = candidates_[i];
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
  return std::isinf(least) ? least : least - 3 * uncertainty(least);
}

// Unlisted pairs may have R > 0. Sum them, and return 0; or, where they are few for what the row
// has cost so far, how many to list.
template <class T>
Index ActiveSet::list_or_burst(Index i, const T* x, double* support, Scratch<T>& scratch) {
  Row& row = candidates_[i];
  RowState& state = states_[at(i)];
  const ClosedForm before = closed_form(i);
  const Top2<double> top = candidate_top(terms(), self(i), row);
  const ClosedForm now = before.after(settings_.damping, top.first);
  const Index positives =
      count_between(n_, x, static_cast<T>(now.mu / now.grown), static_cast<T>(row.below));
  const Index want = candidates_.next_want(i);
  if (positives <= std::max(want, state.bursts * n_ / kBurstShare))
    return std::max(want, positives);
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
  return 0;
}

// Give point i, whose row is x, what it lacks. False where x holds what is no similarity.
template <class T>
bool ActiveSet::refill_row(Index i, const T* x, const Refinement<T>& refinement, double* support,
                           Scratch<T>& scratch, Arena& arena) {
  const Lack lack = states_[at(i)].lack;
  if (lack == Lack::look) {
    const double low = least_to_look_at(i, x, refinement);
    if (std::isinf(low)) return true;
    candidates_.extend_to(i, x, static_cast<T>(low), refinement, abar_before_.data(), scratch,
                          arena);
    candidates_[i].n_positive = candidates_[i].n_inactive;
    return true;
  }
  const Index want =
      lack == Lack::positives ? list_or_burst(i, x, support, scratch) : candidates_.next_want(i);
  return want == 0 || candidates_.extend(i, x, want, refinement, abar_.data(), scratch, arena);
}

// visit(q, x, support, scratch, thread) the rows x of these points, the q-th of which is rows[q];
// false where x holds what is no similarity.
template <class T, class Visit>
void ActiveSet::each_row(const Indices& rows, const RowSource<T>& source, const Visit& visit) {
  Scratches<T> scratches(n_, settings_.threads);
  std::atomic<bool> invalid{false};
  const auto visit_point = [&](std::size_t q, std::size_t thread) {
    Scratch<T>& scratch = scratches[thread];
    const T* x = source.row(static_cast<Index>(q), rows[q], scratch.row.data());
    if (!visit(q, x, support_of(rows[q]), scratch, thread))
      invalid.store(true, std::memory_order_relaxed);
  };
  // The rows of a block are in one thread's hands, as they share its support.
  workers_.together(static_cast<Index>(rows.size()) * n_ >= kSelectTogether, [&] {
    workers_.share(static_cast<Index>(blocks_.size()), [&](Index piece, std::size_t thread) {
      const RowBlock& block = blocks_[as_size(piece)];
      const auto place = [&](Index i) {
        return as_size(std::lower_bound(rows.begin(), rows.end(), i) - rows.begin());
      };
      for (std::size_t q = place(block.first); q < place(block.last); ++q) visit_point(q, thread);
    });
    return true;
  });
  if (invalid) throw not_similarities();
}

// The median of a row x, in which `own` stands for the point itself.
template <class T>
T median_with(T own, Index i, Index n, const T* x, Scratch<T>& scratch) {
  if (x != scratch.row.data()) std::copy_n(x, n, scratch.row.data());
  scratch.row[as_size(i)] = own;
  return median(scratch.row.data(), n, scratch.columns);
}

template <class T>
void ActiveSet::refill(const Indices& rows, const RowSource<T>& source,
                       const Refinement<T>& refinement, T* medians) {
  each_row(
      rows, source,
      [&](std::size_t q, const T* x, double* support, Scratch<T>& scratch, std::size_t thread) {
        const Index i = rows[q];
        const bool valid =
            refill_row(i, x, refinement, support, scratch, candidates_.arena(thread));
        if (medians)
          medians[q] = median_with(static_cast<T>((*refinement.exact)(i, i)), i, n_, x, scratch);
        return valid;
      });
}

template <class T>
void ActiveSet::plan_refill(const Indices& rows, const RowSource<T>& source,
                            const Refinement<T>& refinement, T own, T* medians) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  std::vector<Addition> additions(rows.size());
  std::vector<std::vector<Column>> columns(rows.size());
  each_row(rows, source,
           [&](std::size_t q, const T* x, double* support, Scratch<T>& scratch, std::size_t) {
             const Index i = rows[q];
             const Row& row = candidates_[i];
             const Lack lack = states_[at(i)].lack;
             T low = infinity;
             if (lack == Lack::look) {
               low = static_cast<T>(least_to_look_at(i, x, refinement));
             } else if (row.unlisted > minus_infinity<double>) {
               const Index want = lack == Lack::positives ? list_or_burst(i, x, support, scratch)
                                                          : candidates_.next_want(i);
               if (want > 0) low = candidates_.next_threshold(i, x, want, scratch);
               if (std::isnan(low)) return false;
             }
             additions[q] = {row.below, row.unlisted, 0};
             if (static_cast<double>(low) < row.below) {
               additions[q] = candidates_.propose(i, x, low, refinement, scratch);
               columns[q].assign(scratch.columns.begin(),
                                 scratch.columns.begin() + additions[q].count);
             }
             if (medians) medians[q] = median_with(own, i, n_, x, scratch);
             return true;
           });
  planned_.clear();
  planned_columns_.clear();
  for (std::size_t q = 0; q < rows.size(); ++q) {
    planned_.push_back({rows[q], additions[q]});
    planned_columns_.insert(planned_columns_.end(), columns[q].begin(), columns[q].end());
  }
}

Indices ActiveSet::planned_rows() const {
  Indices rows;
  for (const Planned& planned : planned_)
    rows.insert(rows.end(), as_size(planned.addition.count), planned.row);
  return rows;
}

void ActiveSet::finish_refill(const double* similarities) {
  NewCandidates found(n_);
  const Column* columns = planned_columns_.data();
  for (const auto& [i, addition] : planned_) {
    const bool look = states_[at(i)].lack == Lack::look;
    candidates_.accept(i, addition, columns, similarities,
                       look ? abar_before_.data() : abar_.data(), found, candidates_.arena(0));
    if (look) candidates_[i].n_positive = candidates_[i].n_inactive;
    columns += addition.count;
    similarities += addition.count;
  }
  planned_.clear();
  planned_columns_.clear();
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
  count_candidates();
  return workers_.together(n_candidates_ >= kIterateTogether,
                           [&] { return iterate_shared(source, poll, iterations); });
}

void ActiveSet::count_candidates() {
  n_candidates_ = 0;
  for (Index i = points_.first; i < points_.last; ++i) n_candidates_ += candidates_[i].size();
}

Status ActiveSet::run_rows_with(const Source& source, const Poll& poll) {
  count_candidates();
  return workers_.together(n_candidates_ >= kIterateTogether,
                           [&] { return run_all(source, false, poll); });
}

Status ActiveSet::run_rows(const Poll& poll) { return run_rows_with({}, poll); }

template <class T>
Status ActiveSet::run_rows(const KnownPairs<T>& pairs, const Poll& poll) {
  return run_rows_with({{}, pairs.source()}, poll);
}

// Whether every row has finished this iteration.
bool ActiveSet::none_waits() const {
  return std::all_of(blocks_.begin(), blocks_.end(),
                     [](const RowBlock& block) { return block.waiting.empty(); });
}

std::vector<ProminentColumns::Demand> ActiveSet::demands() const {
  std::vector<ProminentColumns::Demand> demands;
  for (const RowBlock& block : blocks_)
    for (Index i : block.waiting)
      if (const RowState& state = states_[at(i)]; state.lack == Lack::candidates)
        demands.push_back(
            {state.most, kCandidateCost * candidates_.next_want(i) + n_ / kReadingShare});
  return demands;
}

// Look at columns one by one because of which many rows need candidates. Returns whether there are
// any.
bool ActiveSet::promote(const Source& source) {
  const Index known = add_prominent(demands());
  if (known == static_cast<Index>(prominent_.columns().size())) return false;
  bound_prominent_by(known, source);
  return true;
}

void ActiveSet::bound_prominent_by(Index known, const Source& source) {
  const std::vector<Column>& columns = prominent_.columns();
  workers_.share(static_cast<Index>(blocks_.size()), [&](Index piece, std::size_t) {
    const RowBlock& block = blocks_[as_size(piece)];
    const Column* own = columns.data() + known;
    const auto count = static_cast<Index>(columns.size()) - known;
    std::vector<double> s(as_size(count));
    for (Index i = block.first; i < block.last; ++i) {
      source.similarities(i, own, count, s.data());
      float* bounds = prominent_.bounds(i - points_.first) + known;
      for (Index q = 0; q < count; ++q)
        if (own[q] != i) bounds[q] = rounded_up(jitter_.ceiling(s[as_size(q)]));
    }
  });
  leave_out_prominent();
}

template <class T>
void ActiveSet::bound_prominent(Index known, const KnownPairs<T>& pairs) {
  bound_prominent_by(known, {{}, pairs.source()});
}

// Make row i's pairs in prominent columns active that may be its maximum, wherever they stand in
// its order.
void ActiveSet::activate_prominent(Index i, double second, const Source& source, Arena& arena) {
  Row& row = candidates_[i];
  const ClosedForm r = closed_form(i);
  float* bounds = prominent_.bounds(i - points_.first);
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

// All rows that have not finished this iteration, as far as they get.
Status ActiveSet::run_all(const Source& source, bool extend, const Poll& poll) {
  if (!mid_iteration_) {
    if (t_ >= settings_.max_iter) return Status::exhausted;
    begin_iteration();
  }
  workers_.share(static_cast<Index>(blocks_.size()), [&](Index piece, std::size_t thread) {
    run_block(blocks_[as_size(piece)], source, extend, thread);
  });
  mid_iteration_ = true;
  if (poll()) return Status::interrupted;
  return none_waits() ? Status::running : Status::needs_candidates;
}

Status ActiveSet::iterate_shared(const Source& source, const Poll& poll, Index iterations) {
  while (true) {
    bool extend = false;
    Status status;
    while ((status = run_all(source, extend, poll)) == Status::needs_candidates) {
      if (source.similarities && promote(source)) continue;
      if (!source.refill) return status;
      extend = true;
    }
    if (status != Status::running) return status;
    sum_support();
    if (finish_rows().settled(t_ - 1, settings_.convergence_iter)) return Status::converged;
    if (--iterations == 0) return Status::running;
  }
}

// The sums over all blocks, of a set that holds all of them.
void ActiveSet::sum_support() {
  double* sums = diagonal_.support.data();
  if (static_cast<Index>(support_.size()) < kSumTogether) return add_support(0, n_, sums);
  workers_.share((n_ + kColumnsAtOnce - 1) / kColumnsAtOnce, [&](Index piece, std::size_t) {
    const Index first = piece * kColumnsAtOnce;
    add_support(first, std::min(n_, first + kColumnsAtOnce), sums + first);
  });
}

// The blocks' sums in their order, which are taken back for the next iteration.
void ActiveSet::add_support(Index first, Index last, double* sums) {
  for (std::size_t q = 0; q < blocks_.size(); ++q) {
    double* own = support_.data() + static_cast<Index>(q) * n_ + first;
    if (q == 0 && points_.first == 0)
      std::copy_n(own, last - first, sums);
    else
      for (Index k = 0; k < last - first; ++k) sums[k] += own[k];
    std::fill_n(own, last - first, 0.0);
  }
}

Roles ActiveSet::finish_rows() {
  mid_iteration_ = false;
  grown_ = settings_.damping * grown_ + (1 - settings_.damping);
  ++t_;
  return diagonal_.finish_iteration(settings_.damping);
}

Roles ActiveSet::finish_rows(const double* support) {
  std::copy_n(support, points_.size(), diagonal_.support.begin());
  return finish_rows();
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
  template void ActiveSet::plan_refill<T>(const Indices&, const RowSource<T>&,                  \
                                          const Refinement<T>&, T, T*);                         \
  template Status ActiveSet::run_rows<T>(const KnownPairs<T>&, const Poll&);                    \
  template void ActiveSet::bound_prominent<T>(Index, const KnownPairs<T>&);                     \
  template Status ActiveSet::iterate<T>(const T*, const Poll&, Index);                          \
  template Status ActiveSet::iterate<T>(const Features<T>&, const Poll&, Index);
EPRUNER_INSTANTIATE(float)
EPRUNER_INSTANTIATE(double)

}  // namespace epruner
