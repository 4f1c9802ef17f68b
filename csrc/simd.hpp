// Vectors of 32 bytes: the compiler's own where it has GNU's vector types, arrays of as many lanes
// elsewhere. Both do the same operations in the same order, so both give the same bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "compiler.hpp"
#include "row_kernels.hpp"

namespace epruner {

#ifdef EPRUNER_VECTOR_TYPES

// Lowered by the compiler where the machine's vectors are narrower.
template <class T>
struct Vector {
  static constexpr Index width = 32 / sizeof(T);
  typedef T type __attribute__((vector_size(32)));
  typedef std::int64_t words __attribute__((vector_size(32)));
  using mask = decltype(type{} < type{});  // -1 where it holds, 0 elsewhere

  static EPRUNER_INLINE type load(const T* x) {
    type v;
    std::memcpy(&v, x, sizeof v);
    return v;
  }
  // Numbers of any precision, in T's.
  template <class U>
  static EPRUNER_INLINE type converted(const U* x) {
    typedef U other __attribute__((vector_size(width * sizeof(U))));
    other v;
    std::memcpy(&v, x, sizeof v);
    return __builtin_convertvector(v, type);
  }
  static EPRUNER_INLINE void store(T* x, type v) { std::memcpy(x, &v, sizeof v); }
  static EPRUNER_INLINE type fill(T x) { return type{} + x; }

  // v with its halves swapped, in all of it (distance width / 2), in its halves, ... (distance 1).
  template <Index distance>
  static EPRUNER_INLINE type swapped(type v) {
    if constexpr (width == 4 && distance == 2) return __builtin_shufflevector(v, v, 2, 3, 0, 1);
    if constexpr (width == 4 && distance == 1) return __builtin_shufflevector(v, v, 1, 0, 3, 2);
    if constexpr (width == 8 && distance == 4)
      return __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    if constexpr (width == 8 && distance == 2)
      return __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    if constexpr (width == 8 && distance == 1)
      return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
  }

  // The bits that any lane has, of its lower 32.
  static EPRUNER_INLINE std::uint32_t united(mask m) {
    const auto w = (words)m;
    const std::int64_t both = w[0] | w[1] | w[2] | w[3];
    return static_cast<std::uint32_t>(both | both >> 32);
  }
  static EPRUNER_INLINE bool any(mask m) { return united(m) != 0; }
};

// x where the mask holds, y elsewhere; of vectors and of numbers.
template <class Mask, class V>
EPRUNER_INLINE V select(Mask mask, V x, V y) {
  return mask ? x : y;
}

#else

template <class T, int n>
struct Lanes {
  T lane[n];
  EPRUNER_INLINE T operator[](Index j) const { return lane[j]; }
  EPRUNER_INLINE T& operator[](Index j) { return lane[j]; }
};

template <class Out, class T, int n, class Operation>
EPRUNER_INLINE Lanes<Out, n> lane_by_lane(const Lanes<T, n>& x, const Lanes<T, n>& y,
                                          Operation operation) {
  Lanes<Out, n> out;
  for (int j = 0; j < n; ++j) out.lane[j] = static_cast<Out>(operation(x.lane[j], y.lane[j]));
  return out;
}

template <int size>
using Word = std::conditional_t<size == 4, std::int32_t, std::int64_t>;

#define EPRUNER_ARITHMETIC(op)                                                          \
  template <class T, int n>                                                             \
  EPRUNER_INLINE Lanes<T, n> operator op(const Lanes<T, n>& x, const Lanes<T, n>& y) {  \
    return lane_by_lane<T>(x, y, [](T a, T b) { return a op b; });                      \
  }                                                                                     \
  template <class T, int n>                                                             \
  EPRUNER_INLINE Lanes<T, n>& operator op## = (Lanes<T, n> & x, const Lanes<T, n>& y) { \
    return x = x op y;                                                                  \
  }
EPRUNER_ARITHMETIC(+)
EPRUNER_ARITHMETIC(-)
EPRUNER_ARITHMETIC(*)
EPRUNER_ARITHMETIC(&)
EPRUNER_ARITHMETIC(|)
#undef EPRUNER_ARITHMETIC

#define EPRUNER_COMPARISON(op)                                                            \
  template <class T, int n>                                                               \
  EPRUNER_INLINE auto operator op(const Lanes<T, n>& x, const Lanes<T, n>& y) {           \
    return lane_by_lane<Word<sizeof(T)>>(x, y, [](T a, T b) { return a op b ? -1 : 0; }); \
  }
EPRUNER_COMPARISON(<)
EPRUNER_COMPARISON(<=)
EPRUNER_COMPARISON(>)
EPRUNER_COMPARISON(>=)
EPRUNER_COMPARISON(==)
#undef EPRUNER_COMPARISON

template <class T>
struct Vector {
  static constexpr Index width = 32 / sizeof(T);
  using type = Lanes<T, width>;
  using mask = Lanes<Word<sizeof(T)>, width>;

  static EPRUNER_INLINE type load(const T* x) {
    type v;
    std::memcpy(&v, x, sizeof v);
    return v;
  }
  template <class U>
  static EPRUNER_INLINE type converted(const U* x) {
    type v;
    for (Index j = 0; j < width; ++j) v[j] = static_cast<T>(x[j]);
    return v;
  }
  static EPRUNER_INLINE void store(T* x, type v) { std::memcpy(x, &v, sizeof v); }
  static EPRUNER_INLINE type fill(T x) {
    type v;
    for (T& lane : v.lane) lane = T(0) + x;
    return v;
  }

  template <Index distance>
  static EPRUNER_INLINE type swapped(const type& v) {
    type out;
    for (Index j = 0; j < width; ++j) out[j] = v[j ^ distance];
    return out;
  }

  static EPRUNER_INLINE std::uint32_t united(const mask& m) {
    std::uint32_t bits = 0;
    for (const auto lane : m.lane) bits |= static_cast<std::uint32_t>(lane);
    return bits;
  }
  static EPRUNER_INLINE bool any(const mask& m) { return united(m) != 0; }
};

template <class V>
EPRUNER_INLINE V select(bool holds, V x, V y) {
  return holds ? x : y;
}
template <class T, int n>
EPRUNER_INLINE Lanes<T, n> select(const Lanes<Word<sizeof(T)>, n>& mask, const Lanes<T, n>& x,
                                  const Lanes<T, n>& y) {
  Lanes<T, n> out;
  for (int j = 0; j < n; ++j) out.lane[j] = mask.lane[j] ? x.lane[j] : y.lane[j];
  return out;
}

#endif

}  // namespace epruner
