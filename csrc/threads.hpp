// Threads by OpenMP, or one where it was built without; many short rounds of work for them.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#include "compiler.hpp"
#include "row_kernels.hpp"

namespace epruner {

inline int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Number of the calling thread in its parallel region.
inline std::size_t thread_number() {
#ifdef _OPENMP
  return as_size(omp_get_thread_num());
#else
  return 0;
#endif
}

// Threads of this process that work for its callers now, counted while this lives.
class Engaged {
 public:
  explicit Engaged(int threads) : threads_(threads) { count_ += threads; }
  ~Engaged() { count_ -= threads_; }
  Engaged(const Engaged&) = delete;
  Engaged& operator=(const Engaged&) = delete;
  static int count() { return count_; }

 private:
  static inline std::atomic<int> count_{0};
  int threads_;
};

// How long a leader works alone after it waited for a thread that had lost its core: some times as
// long as it waited, and more times if it had hardly taken up with the others again. So waiting
// takes a small part of any run, and a stall is forgotten once rounds go well.
class Backoff {
 public:
  using Clock = std::chrono::steady_clock;

  bool over(Clock::time_point now) const { return now >= until_; }

  // A round from `begin`, in which the leader worked until `waiting` and then waited until `now`.
  // Waiting for less than it worked is no stall: alone it would have worked for as long.
  void waited(Clock::time_point begin, Clock::time_point waiting, Clock::time_point now) {
    const auto lost = now - waiting;
    if (lost <= waiting - begin) return;
    times_ = begin - until_ > kLeast * lost ? kLeast : std::min(2 * times_, kMost);
    until_ = now + times_ * lost;
  }

 private:
  static constexpr int kLeast = 4, kMost = 64;

  Clock::time_point until_{};
  int times_ = kLeast;
};

// One parallel region in which a leader hands out round after round of work. A round costs a
// fraction of a microsecond. On a busy machine it does not wait for threads that are not running:
// every thread has pieces of its own, which stay in its cache from round to round, but whoever has
// done theirs takes those of others. Should a thread lose its core in the middle of a piece, the
// leader works alone for a while.
class Team {
 public:
  // How many of so many threads the other callers in this process leave, whose threads do not give
  // way: two callers that each took every core would wait for each other's.
  static int unclaimed(int threads);
  // How many of these are likely to get a core now, next to other processes' threads, too: all
  // where it cannot be told. Threads without a core cost more than they bring.
  static int advisable(int threads);

  // Run lead(team) on the calling thread while the other threads help with what it distributes.
  // What it throws is thrown here.
  template <class Lead>
  static auto run(int threads, const Lead& lead) {
    Team team(as_size(threads));
    const Engaged engaged(threads);
    decltype(lead(team)) answer{};
    std::exception_ptr error;
#pragma omp parallel num_threads(threads)
    {
      if (thread_number() == 0) {
        try {
          answer = lead(team);
        } catch (...) {
          error = std::current_exception();
        }
        team.over_.store(true, std::memory_order_release);
      } else {
        team.follow(thread_number());
      }
    }
    if (error) std::rethrow_exception(error);
    return answer;
  }

  // One round, for the leader: work(piece, thread) for all pieces in [0, pieces), by whoever is
  // there. Once it has nothing left to do itself, it calls waiting() until the others are done.
  template <class Work, class Waiting>
  void distribute(Index pieces, const Work& work, const Waiting& waiting) {
    const auto begin = Backoff::Clock::now();
    if (!backoff_.over(begin)) {
      for (Index piece = 0; piece < pieces; ++piece) work(piece, std::size_t{0});
      return;
    }
    open(pieces, &call<Work>, &work);
    while (help(0)) continue;
    int looks = 0;
    Backoff::Clock::time_point worked;
    while (done_.load(std::memory_order_acquire) != pieces) {
      if (looks == 0) worked = Backoff::Clock::now();
      waiting();
      wait(++looks);
    }
    if (looks > kPatience) backoff_.waited(begin, worked, Backoff::Clock::now());
    if (failed_.exchange(false)) std::rethrow_exception(error_);
  }
  template <class Work>
  void distribute(Index pieces, const Work& work) {
    distribute(pieces, work, [] {});
  }

 private:
  using Call = void (*)(const void* work, Index piece, std::size_t thread);

  // The first piece of a thread's share that is not taken; above it the number of the round, so
  // that a late thread cannot take a piece of a round that has ended.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> next{kClosed};
    std::atomic<Index> last{0};
  };

  static constexpr std::uint64_t kClosed = 0xffffffffu;
  static constexpr int kPatience = 4096;  // looks, some 100 microseconds, before others may run

  explicit Team(std::size_t threads) : shares_(threads) {}

  template <class Work>
  static void call(const void* work, Index piece, std::size_t thread) {
    (*static_cast<const Work*>(work))(piece, thread);
  }

  void open(Index pieces, Call call, const void* work) {
    ++round_;
    for (Share& share : shares_)
      share.next.store(round_ << 32 | kClosed, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    done_.store(0, std::memory_order_relaxed);
    call_.store(call, std::memory_order_relaxed);
    work_.store(work, std::memory_order_relaxed);
    const auto count = static_cast<Index>(shares_.size());
    for (Index q = 0; q < count; ++q) {
      Share& share = shares_[as_size(q)];
      share.last.store(pieces * (q + 1) / count, std::memory_order_release);
      share.next.store(round_ << 32 | static_cast<std::uint64_t>(pieces * q / count),
                       std::memory_order_release);
    }
  }

  // Do a piece, of the own share if there is one; false when none is left.
  bool help(std::size_t own) {
    for (std::size_t q = 0; q < shares_.size(); ++q) {
      Share& share = shares_[(own + q) % shares_.size()];
      std::uint64_t next = share.next.load(std::memory_order_acquire);
      while (true) {
        const auto piece = static_cast<Index>(next & kClosed);
        const Call call = call_.load(std::memory_order_relaxed);
        const void* work = work_.load(std::memory_order_relaxed);
        if (piece >= share.last.load(std::memory_order_acquire)) break;
        // Succeeds only if the round that all of this was read in still goes on.
        if (!share.next.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel,
                                              std::memory_order_acquire))
          continue;
        try {
          call(work, piece, own);
        } catch (...) {
          if (!failed_.exchange(true)) error_ = std::current_exception();
        }
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  void follow(std::size_t own) {
    int looks = 0;
    while (!over_.load(std::memory_order_acquire)) {
      if (help(own))
        looks = 0;
      else
        wait(++looks);
    }
  }

  static void wait(int looks) {
    if (looks > kPatience) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      return;
    }
    relax();
  }

  std::vector<Share> shares_;
  std::uint64_t round_ = 0;
  Backoff backoff_;
  std::atomic<Call> call_{nullptr};
  std::atomic<const void*> work_{nullptr};
  alignas(64) std::atomic<Index> done_{0};
  std::atomic<bool> over_{false}, failed_{false};
  std::exception_ptr error_;
};

// The threads that a caller may use: started for as long as they are worth it, else the calling
// one.
class Workers {
 public:
  explicit Workers(int threads) : threads_(threads) {}
  int threads() const { return threads_; }

  // Run body(), in which share() shares between threads, if that is worth their start.
  template <class Body>
  auto together(bool worthwhile, const Body& body) {
    if (team_ || !worthwhile) return body();
    // What seems to need a core may do so for a moment only, so two threads are tried all the same:
    // a team notices when one of them has lost its core.
    const int threads = std::max(std::min(2, Team::unclaimed(threads_)), Team::advisable(threads_));
    if (threads == 1) {
      const Engaged engaged(1);
      return body();
    }
    return Team::run(threads, [&](Team& team) {
      team_ = &team;
      const Leave leave{*this};
      return body();
    });
  }

  // work(piece, thread) for all pieces in [0, pieces).
  template <class Work>
  void share(Index pieces, const Work& work) {
    if (team_) return team_->distribute(pieces, work);
    for (Index piece = 0; piece < pieces; ++piece) work(piece, std::size_t{0});
  }

 private:
  struct Leave {
    Workers& workers;
    ~Leave() { workers.team_ = nullptr; }
  };

  int threads_;
  Team* team_ = nullptr;  // while threads work together
};

}  // namespace epruner
