#include "threads.hpp"

#ifdef __linux__
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#endif

namespace epruner {
namespace {

// Cores that this process may run on.
int own_cores() {
#ifdef __linux__
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

#ifdef __linux__
// What runs for a moment only, as the kernel does after memory was freed, is hardly met again.
constexpr int kGlances = 3;
constexpr std::chrono::microseconds kBetweenGlances{100};

// Threads of this process that are running or ready to.
int own_running() {
  int running = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator task("/proc/self/task", error), end;
       !error && task != end; task.increment(error)) {
    std::string line;
    std::getline(std::ifstream(task->path() / "stat"), line);
    const std::size_t name_end = line.rfind(')');  // pid (name) state ...
    running += name_end + 2 < line.size() && line[name_end + 2] == 'R';
  }
  return running;
}

// How many of so many threads find a core next to other processes' now. Threads of this process
// that wait in a loop for their next work give way; those of others do not.
int find_cores(int threads) {
  double minutes[3];
  int running = 0;
  std::ifstream("/proc/loadavg") >> minutes[0] >> minutes[1] >> minutes[2] >> running;
  const auto cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  return running <= cores ? threads : std::clamp(cores - (running - own_running()), 1, threads);
}
#endif

}  // namespace

int Team::advisable(int threads) {
  if (threads == 1) return 1;
  // Other callers' threads do not give way: two callers that each took every core would wait for
  // each other's.
  const int others = Engaged::count();
  if (others > 0) threads = std::clamp(own_cores() - others, 1, threads);
#ifdef __linux__
  int found = threads == 1 ? 1 : find_cores(threads);
  for (int glance = 1; glance < kGlances && found < threads; ++glance) {
    std::this_thread::sleep_for(kBetweenGlances);
    found = std::max(found, find_cores(threads));
  }
  return found;
#else
  return threads;
#endif
}

}  // namespace epruner
