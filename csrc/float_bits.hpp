// Finite numbers as integers in the same order: neighbours differ by one, and halving an interval
// reaches any number in as many steps as it has bits, however far apart the ends lie.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace epruner {

template <class T>
using FloatBits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
inline FloatBits<T> to_bits(T x) {
  const auto bits = std::bit_cast<FloatBits<T>>(x);
  return bits < 0 ? bits ^ std::numeric_limits<FloatBits<T>>::max() : bits;
}

template <class T>
inline T from_bits(FloatBits<T> key) {
  return std::bit_cast<T>(key < 0 ? key ^ std::numeric_limits<FloatBits<T>>::max() : key);
}

}  // namespace epruner
