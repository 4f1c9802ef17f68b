// The entry points of GNU's OpenMP that the kernels call, on std::thread: ThreadSanitizer sees how
// these wait for each other, and does not see it in libgomp, which it reports without reason.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// One worksharing loop of a team: who comes takes the next iterations, which by itself orders nothing.
struct Loop {
  std::atomic<long> next;
  long end, chunk;

  bool take(long* first, long* last) {
    *first = next.fetch_add(chunk, std::memory_order_relaxed);
    *last = std::min(end, *first + chunk);
    return *first < end;
  }
};

class Team {
 public:
  explicit Team(unsigned size) : size(size) {}

  void barrier() {
    std::unique_lock lock(mutex_);
    const unsigned long round = round_;
    if (++waiting_ == size) {
      waiting_ = 0;
      ++round_;
      all_there_.notify_all();
    } else {
      all_there_.wait(lock, [&] { return round_ != round; });
    }
  }

  // The loop that a thread meets as its `number`th: the first to meet it sets it up.
  Loop* loop(std::size_t number, long start, long end, long chunk) {
    const std::lock_guard lock(mutex_);
    if (loops_.size() <= number) loops_.emplace_back(start, end, chunk);
    return &loops_[number];
  }

  const unsigned size;

 private:
  std::mutex mutex_;
  std::condition_variable all_there_;
  unsigned waiting_ = 0;
  unsigned long round_ = 0;
  std::deque<Loop> loops_;
};

struct Place {
  Team* team = nullptr;
  unsigned number = 0;
  std::size_t loops = 0;
  Loop* loop = nullptr;
};

thread_local Place here;
std::mutex atomic;

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned size, unsigned) {
  Team team(size);
  const Place outside = here;
  std::vector<std::thread> others;
  for (unsigned number = 1; number < size; ++number)
    others.emplace_back([&team, body, data, number] {
      here = {&team, number};
      body(data);
    });
  here = {&team};
  body(data);
  for (std::thread& other : others) other.join();
  here = outside;
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
  return here.loop->take(first, last);
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long, long chunk, long* first,
                                          long* last) {
  here.loop = here.team->loop(here.loops++, start, end, chunk);
  return here.loop->take(first, last);
}

void GOMP_barrier() { here.team->barrier(); }
void GOMP_loop_end() { here.team->barrier(); }
void GOMP_loop_end_nowait() {}
void GOMP_atomic_start() { atomic.lock(); }
void GOMP_atomic_end() { atomic.unlock(); }

int omp_get_thread_num() { return static_cast<int>(here.number); }
int omp_get_num_threads() { return here.team ? static_cast<int>(here.team->size) : 1; }
int omp_get_max_threads() { return 4; }
}
