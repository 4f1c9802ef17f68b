// Threads that share work, for ThreadSanitizer to watch: the team by itself, and every solver,
// whose answers must not depend on the number of threads.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>

#include "../../csrc/solve.hpp"

namespace epruner {

// In place of csrc/threads.cpp: all threads, however busy the machine is.
int Team::unclaimed(int threads) { return threads; }
int Team::advisable(int threads) { return threads; }

}  // namespace epruner

using namespace epruner;

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

// Rounds of many sizes: every piece is done once, by then all can be read, and what a piece throws
// reaches the leader.
void rounds(int threads) {
  std::mt19937 random(static_cast<unsigned>(threads));
  std::vector<int> done(97);
  const bool thrown = Team::run(threads, [&](Team& team) {
    for (int round = 1; round <= 3000; ++round) {
      const auto pieces = static_cast<Index>(random() % done.size());
      team.distribute(pieces, [&](Index piece, std::size_t) {
        ++done[static_cast<std::size_t>(piece)];
        if (round % 7 == 0) std::this_thread::yield();
      });
      for (std::size_t piece = 0; piece < done.size(); ++piece) {
        require(done[piece] == (static_cast<Index>(piece) < pieces), "every piece is done once");
        done[piece] = 0;
      }
    }
    try {
      team.distribute(50, [](Index piece, std::size_t) {
        if (piece == 33) throw std::runtime_error("piece 33");
      });
    } catch (const std::runtime_error&) {
      return true;
    }
    return false;
  });
  require(thrown, "what a piece throws reaches the leader");
}

template <class T>
std::vector<T> similarities(Index n, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::vector<double> x(static_cast<std::size_t>(4 * n));
  for (double& value : x) value = normal(random);
  std::vector<T> S(static_cast<std::size_t>(n * n));
  for (Index i = 0; i < n; ++i)
    for (Index k = 0; k < n; ++k)
      S[static_cast<std::size_t>(i * n + k)] =
          static_cast<T>(-squared_distance(4, x.data() + 4 * i, x.data() + 4 * k));
  return S;
}

const Poll kNever = [] { return false; };

template <class T>
Outcome solve_active_set(Index n, const T* S, const double* preference, const Settings& settings,
                         Indices& labels) {
  const Jitter jitter(0, sizeof(T) == 4);
  ActiveSet active_set(n, {0, n}, preference, jitter, settings);
  const Outcome outcome = solve_matrix(active_set, S, kNever);
  Indices exemplars;
  for (std::size_t k = 0; k < outcome.is_exemplar.size(); ++k)
    if (outcome.is_exemplar[k]) exemplars.push_back(static_cast<Index>(k));
  if (!exemplars.empty())
    labels = decode(Matrix<T>(n, S), &active_set, preference, jitter, settings.threads, exemplars);
  return outcome;
}

template <class T>
void solvers(Index n, double preference, std::mt19937& random) {
  const std::vector<T> S = similarities<T>(n, random);
  const std::vector<double> preferences(static_cast<std::size_t>(n), preference);
  const Jitter jitter(0, sizeof(T) == 4);
  Settings settings{0.7, 60, 15, 1};
  Indices labels, others;
  const Outcome sparse = solve_active_set(n, S.data(), preferences.data(), settings, labels);
  const Outcome dense = solve_dense(n, S.data(), preferences.data(), jitter, settings, kNever);
  const std::vector<Problem<T>> many(8, Problem<T>{n / 4, S.data(), preferences.data()});
  const auto batch = cluster_many(many, jitter, settings, kNever);
  for (settings.threads = 2; settings.threads <= 4; ++settings.threads) {
    const Outcome sparse2 = solve_active_set(n, S.data(), preferences.data(), settings, others);
    require(sparse2.is_exemplar == sparse.is_exemplar && sparse2.n_iter == sparse.n_iter &&
                others == labels,
            "active set: the number of threads changes nothing");
    const Outcome dense2 = solve_dense(n, S.data(), preferences.data(), jitter, settings, kNever);
    require(dense2.is_exemplar == dense.is_exemplar && dense2.n_iter == dense.n_iter,
            "dense: the number of threads changes nothing");
    const auto batch2 = cluster_many(many, jitter, settings, kNever);
    for (std::size_t q = 0; q < many.size(); ++q)
      require(batch2[q].labels == batch[q].labels, "many: the number of threads changes nothing");
  }
}

}  // namespace

int main() {
  for (int threads = 1; threads <= 4; ++threads) rounds(threads);
  std::mt19937 random(0);
  // Points enough for threads to share selection, lists (16 entries a row) and several problems.
  for (const double preference : {-2.0, -20.0, -400.0}) {  // many clusters, fewer, bursts
    solvers<float>(420, preference, random);
    solvers<double>(400, preference, random);
  }
  std::puts("threads share as they should");
}
