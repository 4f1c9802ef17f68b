#include "solve.hpp"

#include <atomic>
#include <numeric>
#include <optional>

namespace epruner {
namespace {

constexpr Index kSelectionChunk = Index{1} << 26;  // entries of S read between two polls
constexpr Index kTogether = Index{1} << 16;  // entries of all S, from where threads are worth it

constexpr Index kDense = 96;  // points from which lists are faster

template <class T>
void require_similarities(Index n, const T* S) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  for (Index i = 0; i < n; ++i) {
    const T own = S[i * n + i];
    const Index valid = count_between(n, S + i * n, -infinity, infinity);
    if (valid + !(own < infinity) < n) throw not_similarities();
  }
}

}  // namespace

template <class T>
Outcome solve_matrix(ActiveSet& active_set, const T* S, const Poll& poll) {
  const Index n = active_set.size();
  const RowSource<T> source{S, n, true};
  const Index chunk = std::max<Index>(1, kSelectionChunk / n);
  return active_set.workers().together(n * n >= kSelectTogether, [&] {
    for (Index first = 0; first < n; first += chunk) {
      Indices rows(as_size(std::min(chunk, n - first)));
      std::iota(rows.begin(), rows.end(), first);
      active_set.refill(rows, source, Refinement<T>{});
      if (poll()) return active_set.outcome(Status::interrupted);
    }
    return active_set.outcome(active_set.iterate(S, poll));
  });
}

template <class Similarity>
Indices decode(const Similarity& similarity, const ActiveSet* active_set, const double* preference,
               const Jitter& jitter, int threads, Indices& exemplars) {
  const auto n = as_size(similarity.size());
  Indices labels(n);
  const auto assign_all = [&] {
    std::fill(labels.begin(), labels.end(), kUnassigned);
    if (active_set) {
      Indices position(n, -1);
      for (std::size_t c = 0; c < exemplars.size(); ++c)
        position[as_size(exemplars[c])] = static_cast<Index>(c);
      active_set->assign(position, labels);
    }
    assign(similarity, exemplars, jitter, threads, labels);
  };
  assign_all();
  exemplars = best_members(similarity, preference, labels, static_cast<Index>(exemplars.size()),
                           jitter, threads);
  assign_all();
  sort_by_index(exemplars, labels);
  return labels;
}

template <class T>
std::vector<Clustering> cluster_many(const std::vector<Problem<T>>& problems, const Jitter& jitter,
                                     const Settings& settings, const Poll& poll) {
  std::vector<Clustering> answers(problems.size());
  const Settings alone{settings.damping, settings.max_iter, settings.convergence_iter, 1};
  const auto solve = [&](std::size_t q, const Poll& own_poll) {
    Clustering& answer = answers[q];
    answer.outcome.status = Status::interrupted;
    if (own_poll()) return;
    const Problem<T>& problem = problems[q];
    std::optional<ActiveSet> active_set;
    if (problem.n <= kDense) {
      require_similarities(problem.n, problem.S);
      answer.outcome =
          solve_dense(problem.n, problem.S, problem.preference, jitter, alone, own_poll);
    } else {
      active_set.emplace(problem.n, Range{0, problem.n}, problem.preference, jitter, alone);
      answer.outcome = solve_matrix(*active_set, problem.S, own_poll);
    }
    if (answer.outcome.status == Status::interrupted) return;
    const std::vector<std::uint8_t>& is_exemplar = answer.outcome.is_exemplar;
    for (std::size_t k = 0; k < is_exemplar.size(); ++k)
      if (is_exemplar[k]) answer.exemplars.push_back(static_cast<Index>(k));
    if (answer.exemplars.empty()) {
      answer.labels.assign(is_exemplar.size(), -1);
      return;
    }
    answer.labels = decode(Matrix<T>(problem.n, problem.S), active_set ? &*active_set : nullptr,
                           problem.preference, jitter, 1, answer.exemplars);
  };

  std::vector<std::size_t> order(problems.size());  // the largest first
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t x, std::size_t y) { return problems[x].n > problems[y].n; });
  Index entries = 0;
  for (const Problem<T>& problem : problems) entries += problem.n * problem.n;
  const int threads = entries < kTogether ? 1 : Team::advisable(settings.threads);
  if (threads == 1) {
    for (std::size_t q : order) solve(q, poll);
    return answers;
  }
  std::vector<std::size_t> dealt;  // so that every thread begins with its largest
  for (std::size_t first = 0; first < as_size(threads); ++first)
    for (std::size_t e = first; e < order.size(); e += as_size(threads)) dealt.push_back(order[e]);
  std::atomic<bool> stopped{false};
  const auto ask = [&] {
    if (poll()) stopped.store(true, std::memory_order_relaxed);
  };
  Team::run(threads, [&](Team& team) {
    team.distribute(
        static_cast<Index>(dealt.size()),
        [&](Index piece, std::size_t thread) {
          try {
            solve(dealt[as_size(piece)], [&] {
              if (thread == 0) ask();
              return stopped.load(std::memory_order_relaxed);
            });
          } catch (...) {
            stopped.store(true, std::memory_order_relaxed);
            throw;
          }
        },
        ask);
    return true;
  });
  return answers;
}

#define EPRUNER_INSTANTIATE(T)                                                                    \
  template Outcome solve_matrix<T>(ActiveSet&, const T*, const Poll&);                            \
  template Indices decode<Matrix<T>>(const Matrix<T>&, const ActiveSet*, const double*,           \
                                     const Jitter&, int, Indices&);                               \
  template Indices decode<Features<T>>(const Features<T>&, const ActiveSet*, const double*,       \
                                       const Jitter&, int, Indices&);                             \
  template std::vector<Clustering> cluster_many<T>(const std::vector<Problem<T>>&, const Jitter&, \
                                                   const Settings&, const Poll&);
EPRUNER_INSTANTIATE(float)
EPRUNER_INSTANTIATE(double)

}  // namespace epruner
