#include "threads.hpp"

#ifdef __linux__
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#endif

namespace epruner {
#ifdef __linux__
namespace {

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

}  // namespace
#endif

int Team::advisable(int threads) {
#ifndef __linux__
  return threads;
#else
  if (threads == 1) return 1;
  double minutes[3];
  int running = 0;
  std::ifstream("/proc/loadavg") >> minutes[0] >> minutes[1] >> minutes[2] >> running;
  const auto cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (running <= cores) return threads;
  // Threads of this process that wait in a loop for their next work give way; those of others do
  // not.
  return std::clamp(cores - (running - own_running()), 1, threads);
#endif
}

}  // namespace epruner
