"""What C++ promises of threads, where no answer shows it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from processes import in_a_process

from epruner._install import CHECKOUT

BACKOFF = """
#include <cstdio>
#include "threads.hpp"
using namespace epruner;
using std::chrono::milliseconds;

const Backoff::Clock::time_point start{std::chrono::hours(1)};
Backoff backoff;
long now = 0, alone = 0;  // milliseconds

// A round of a millisecond that ends with this wait; then alone for as long as that is wanted.
void round_that_waits(long wait) {
  const auto begin = start + milliseconds(now);
  now += 1 + wait;
  backoff.waited(begin, begin + milliseconds(1), begin + milliseconds(1 + wait));
  for (alone = 0; !backoff.over(start + milliseconds(now)); ++now) ++alone;
}

int main() {
  round_that_waits(1);  // no longer than it worked
  std::printf("%ld ", alone);
  for (int stall = 0; stall < 3; ++stall) {  // far between
    now += 100;
    round_that_waits(5);
    std::printf("%ld ", alone);
  }
  const long begin = now;
  for (int stall = 0; stall < 50; ++stall) round_that_waits(5);  // nobody ever comes back
  std::printf("%ld ", 100 * 50 * 5 / (now - begin));
  now += 100;  // and then somebody does
  round_that_waits(5);
  std::printf("%ld", alone);
}
"""


def test_a_stall_is_forgotten_and_many_cost_little(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None or CHECKOUT is None:
        pytest.skip("compiles the sources of a checkout")
    (tmp_path / "backoff.cpp").write_text(BACKOFF)
    sources = f"-I{CHECKOUT / 'csrc'}"
    command = [compiler, "-std=c++20", "-fopenmp", sources, "backoff.cpp", "-o", "backoff"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run(
        [tmp_path / "backoff"], capture_output=True, text=True, check=True, timeout=60
    )
    no_stall, *apart, percent_waited, afterwards = map(int, done.stdout.split())
    assert no_stall == 0
    assert apart == [20, 20, 20]
    assert percent_waited < 3
    assert afterwards == 20


DECODE = """
import resource
import numpy as np
from epruner.cluster import _native
n, d = 4, 1 << 22
X = np.zeros((n, d), dtype=np.float32)
X[2:] = 1
active_set = _native.ActiveSet(np.zeros(n), 0.5, 20, 15, 0, True, 1)
features = _native.Features32(X, np.zeros(n, dtype=np.float32), 0.0)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (1 << 24)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    features.decode(active_set, np.zeros(n), np.array([0, 2]), 0, 1)
except MemoryError:
    print("MemoryError")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits its own memory")
def test_no_memory_for_a_decoding_is_an_error() -> None:
    assert in_a_process(DECODE) == "MemoryError"
