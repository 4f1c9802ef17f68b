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
#endif

}  // namespace

int Team::unclaimed(int threads) {
  if (threads == 1) return 1;
  const int others = Engaged::count();
  return others > 0 ? std::clamp(own_cores() - others, 1, threads) : threads;
}

int Team::advisable(int threads) {
  threads = unclaimed(threads);
#ifdef __linux__
  if (threads == 1) return 1;
  double minutes[3];
  int running = 0;
  std::ifstream("/proc/loadavg") >> minutes[0] >> minutes[1] >> minutes[2] >> running;
  const auto cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  // Threads of this process that wait in a loop for their next work give way; those of others do
  // not.
  if (running > cores) threads = std::clamp(cores - (running - own_running()), 1, threads);
#endif
  return threads;
}

}  // namespace epruner
