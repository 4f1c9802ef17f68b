// Enough of CUDA to run kernels.cu on a CPU: block after block, a block's threads as fibers.
//
// A fiber runs until it waits for its warp or block; then the next one runs. When all of a block's
// fibers wait for each other in vain the program stops: on a device that kernel would hang.
// The order of fibers can be reversed: a result that depends on it is a race.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define EPRUNER_SHARED(name) unsigned char* const name = shim::block.shared.data()

struct Dim {
  unsigned x;
};
inline Dim threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr std::size_t kStack = 64 << 10;

struct Barrier {
  unsigned arrived = 0, generation = 0;
  int all = 1, any = 0, all_result = 1, any_result = 0;
};

struct Block {
  std::vector<unsigned char> shared;
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<std::uint64_t> lanes;
};

struct Fiber {
  std::unique_ptr<char[]> stack;
  jmp_buf at;
  bool started = false, finished = false;
};

inline Block block;
inline std::vector<Fiber> fibers;
inline ucontext_t beginning;
inline jmp_buf scheduler;
inline unsigned current;
inline bool progress, reversed;
inline void (*body)(const std::uint64_t*);
inline const std::uint64_t* arguments;

// A context starts a fiber on its own stack; from then on, jumps change stacks without system calls.
inline void yield() {
  if (_setjmp(fibers[current].at) == 0) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier, unsigned members, int vote = 0) {
  barrier.all &= vote != 0;
  barrier.any |= vote != 0;
  const unsigned generation = barrier.generation;
  progress = true;
  if (++barrier.arrived == members) {
    barrier.all_result = barrier.all;
    barrier.any_result = barrier.any;
    barrier.all = 1;
    barrier.any = 0;
    barrier.arrived = 0;
    ++barrier.generation;
  }
  while (barrier.generation == generation) yield();
}

inline Barrier& warp() { return block.warps[current / 32]; }

inline void enter() {  // a fiber serves block after block
  for (;; yield()) {
    body(arguments);
    fibers[current].finished = progress = true;
  }
}

inline void resume() {
  Fiber& fiber = fibers[current];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  getcontext(&beginning);
  beginning.uc_stack.ss_sp = fiber.stack.get();
  beginning.uc_stack.ss_size = kStack;
  beginning.uc_link = nullptr;
  makecontext(&beginning, enter, 0);
  setcontext(&beginning);
}

inline void run_block() {
  for (Fiber& fiber : fibers) fiber.finished = false;
  const unsigned count = static_cast<unsigned>(fibers.size());
  for (unsigned left = count; left > 0;) {
    progress = false;
    for (unsigned q = 0; q < count; ++q) {
      const unsigned id = reversed ? count - 1 - q : q;
      if (fibers[id].finished) continue;
      current = threadIdx.x = id;
      resume();
      left -= fibers[id].finished;
    }
    if (!progress && left > 0) {
      std::fprintf(stderr, "cuda_shim: the threads of block %u wait in vain\n", blockIdx.x);
      std::abort();
    }
  }
}

// Every kernel argument is one 64-bit word.
template <class... A, std::size_t... I>
void unpack(void (*kernel)(A...), const std::uint64_t* words, std::index_sequence<I...>) {
  std::tuple<A...> values;
  (std::memcpy(&std::get<I>(values), words + I, 8), ...);
  kernel(std::get<I>(values)...);
}
template <class... A>
void call(void (*kernel)(A...), const std::uint64_t* words) {
  static_assert(((sizeof(A) == 8) && ...));
  unpack(kernel, words, std::index_sequence_for<A...>());
}

inline void launch(void (*kernel)(const std::uint64_t*), unsigned blocks, unsigned threads,
                   std::size_t shared, const std::uint64_t* words, bool reverse) {
  body = kernel;
  arguments = words;
  reversed = reverse;
  blockDim.x = threads;
  gridDim.x = blocks;
  fibers.resize(threads);
  for (Fiber& fiber : fibers)
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  for (unsigned q = 0; q < blocks; ++q) {
    blockIdx.x = reverse ? blocks - 1 - q : q;
    block.shared.assign(shared, 0xff);  // NaN: what a kernel forgets to initialise shows
    block.barrier = Barrier();
    block.warps.assign(threads / 32, Barrier());
    block.lanes.assign(threads, 0);
    run_block();
  }
}

}  // namespace shim

#define SHIM_KERNEL(name)                                                                       \
  extern "C" void shim_##name(unsigned blocks, unsigned threads, std::size_t shared,            \
                              const std::uint64_t* words, bool reverse) {                       \
    shim::launch([](const std::uint64_t* w) { shim::call(name, w); }, blocks, threads, shared,  \
                 words, reverse);                                                               \
  }

inline void __syncthreads() { shim::wait(shim::block.barrier, blockDim.x); }
inline int __syncthreads_and(int vote) {
  shim::wait(shim::block.barrier, blockDim.x, vote);
  return shim::block.barrier.all_result;
}
inline int __syncthreads_or(int vote) {
  shim::wait(shim::block.barrier, blockDim.x, vote);
  return shim::block.barrier.any_result;
}
inline int __any_sync(unsigned, int vote) {
  shim::wait(shim::warp(), 32, vote);
  return shim::warp().any_result;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  using shim::block;
  const unsigned self = shim::current;
  std::memcpy(&block.lanes[self], &value, sizeof(T));
  shim::wait(shim::warp(), 32);
  std::memcpy(&value, &block.lanes[self ^ static_cast<unsigned>(mask)], sizeof(T));
  shim::wait(shim::warp(), 32);
  return value;
}

template <class T>
T atomicAdd(T* where, T x) {
  const T old = *where;
  *where += x;
  return old;
}
template <class T>
T atomicMin(T* where, T x) {
  const T old = *where;
  if (x < old) *where = x;
  return old;
}
inline int atomicOr(int* where, int x) {
  const int old = *where;
  *where |= x;
  return old;
}

template <class To, class From>
To shim_bits(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline double __longlong_as_double(long long x) { return shim_bits<double>(x); }
inline long long __double_as_longlong(double x) { return shim_bits<long long>(x); }
inline float __uint_as_float(unsigned x) { return shim_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return shim_bits<unsigned>(x); }
