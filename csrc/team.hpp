// Threads that share short pieces of work again and again.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "rows.hpp"

namespace epruner {

// One parallel region in which a leader hands out round after round of the same pieces of work. A
// round costs a fraction of a microsecond. It does not wait for threads that the machine has given
// to somebody else: every thread has pieces of its own, which stay in its cache from round to round,
// but whoever has done theirs takes those of others.
class Team {
 public:
  // Run lead(team) on the calling thread while the other threads help with what it distributes:
  // rounds of work(piece) for all pieces in [0, pieces).
  template <class Lead, class Work>
  static auto run(int threads, Index pieces, const Lead& lead, const Work& work) {
    Team team(static_cast<std::size_t>(threads), pieces);
    decltype(lead(team)) answer{};
#pragma omp parallel num_threads(threads)
    {
      if (omp_get_thread_num() == 0) {
        answer = lead(team);
        team.over_.store(true, std::memory_order_release);
      } else {
        team.follow(static_cast<std::size_t>(omp_get_thread_num()), work);
      }
    }
    return answer;
  }

  // One round, by whoever is there. For the leader.
  template <class Work>
  void distribute(const Work& work) {
    done_.store(0, std::memory_order_relaxed);
    ++round_;
    for (Share& share : shares_)
      share.next.store(round_ << 32 | static_cast<std::uint64_t>(share.first),
                       std::memory_order_release);
    while (help(0, work)) continue;
    while (done_.load(std::memory_order_acquire) != pieces_) relax();
  }

 private:
  struct alignas(64) Share {
    // The first piece that is not taken; above it the number of the round, so that a late thread
    // cannot take a piece of a round that has ended.
    std::atomic<std::uint64_t> next;
    Index first, last;
  };

  Team(std::size_t threads, Index pieces) : pieces_(pieces), shares_(threads) {
    const auto count = static_cast<Index>(threads);
    for (Index q = 0; q < count; ++q) {
      Share& share = shares_[static_cast<std::size_t>(q)];
      share.first = pieces * q / count;
      share.last = pieces * (q + 1) / count;
      share.next.store(static_cast<std::uint64_t>(share.last));
    }
  }

  // Do a piece, of the own share if there is one; false when none is left.
  template <class Work>
  bool help(std::size_t own, const Work& work) {
    for (std::size_t q = 0; q < shares_.size(); ++q) {
      Share& share = shares_[(own + q) % shares_.size()];
      std::uint64_t next = share.next.load(std::memory_order_acquire);
      while (piece(next) < share.last) {
        if (!share.next.compare_exchange_weak(next, next + 1, std::memory_order_acquire)) continue;
        work(piece(next));
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  template <class Work>
  void follow(std::size_t own, const Work& work) {
    constexpr int kPatience = 4096;  // looks before the thread lets others run
    int idle = 0;
    while (!over_.load(std::memory_order_acquire)) {
      if (help(own, work)) {
        idle = 0;
      } else if (++idle < kPatience) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

  static Index piece(std::uint64_t next) { return static_cast<Index>(next & 0xffffffffu); }

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const Index pieces_;
  std::vector<Share> shares_;
  std::uint64_t round_ = 0;
  alignas(64) std::atomic<Index> done_{0};
  std::atomic<bool> over_{false};
};

}  // namespace epruner
