// What compilers spell differently.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define EPRUNER_INLINE __forceinline
#else
#define EPRUNER_INLINE inline __attribute__((always_inline))
#endif

namespace epruner {

// Bring the cache line of `address` near, to be written.
EPRUNER_INLINE void prefetch_line(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 1);
#else
  static_cast<void>(address);
#endif
}

// Tell the core that this thread waits in a loop.
EPRUNER_INLINE void relax() {
#if defined(_MSC_VER) && !defined(__clang__) && defined(_M_X64)
  _mm_pause();
#elif defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  asm volatile("yield");
#endif
}

}  // namespace epruner
