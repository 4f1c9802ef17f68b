// OpenMP, or one thread where it was built without.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstddef>

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
  return static_cast<std::size_t>(omp_get_thread_num());
#else
  return 0;
#endif
}

}  // namespace epruner
