// What compilers spell differently.
#pragma once

#include <cstddef>

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define EPRUNER_INLINE __forceinline
#else
#define EPRUNER_INLINE inline __attribute__((always_inline))
#endif

// One clone per instruction set, chosen when the library is loaded. Only serial functions carry the
// attribute: inside a function with an OpenMP region it would resolve twice. ThreadSanitizer does
// not run yet when they are chosen.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define EPRUNER_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EPRUNER_CLONES
#endif

namespace epruner {

// Bring the cache line of `address` near, to be read or to be written.
template <bool to_write>
EPRUNER_INLINE void prefetch_line(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, to_write);
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
