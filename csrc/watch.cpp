#include "watch.hpp"

#include <algorithm>
#include <cmath>

namespace epruner {
namespace {

constexpr std::uint64_t kMostBins = std::uint64_t{1} << 22;
constexpr Index kMostKept = Index{1} << 24;  // values

}  // namespace

template <class T>
Watch<T>::Watch(T low, T high, Index expected, Index writers)
    : low_(low + T(0)),
      above_(std::nextafter(high, std::numeric_limits<T>::infinity())),
      seen_(static_cast<std::size_t>(writers)) {
  const std::uint64_t span = distance(high);
  if (span >= kMostBins && expected <= kMostKept) return;
  while (span >> shift_ >= kMostBins) ++shift_;
  bins_ = std::vector<std::atomic<Index>>(static_cast<std::size_t>((span >> shift_) + 1));
}

// Adding 0 makes one number of both zeros.
template <class T>
typename Watch<T>::Key Watch<T>::distance(T value) const {
  return static_cast<Key>(to_ordered(value + T(0))) - static_cast<Key>(to_ordered(low_));
}

template <class T>
void Watch<T>::see(Index writer, Index n, const T* values, Column* scratch) {
  Seen& own = seen_[static_cast<std::size_t>(writer)];
  own.below += count_between(n, values, minus_infinity<T>, low_);
  const Index found = collect_between(n, values, low_, above_, scratch);
  for (Index e = 0; e < found; ++e) {
    const T value = values[scratch[e]];
    if (bins_.empty())
      own.inside.push_back(value);
    else
      bins_[distance(value) >> shift_].fetch_add(1, std::memory_order_relaxed);
  }
}

template <class T>
std::vector<T> Watch<T>::at(const std::vector<Index>& ranks) const {
  Index below = 0;
  std::vector<T> kept;
  for (const Seen& own : seen_) {
    below += own.below;
    kept.insert(kept.end(), own.inside.begin(), own.inside.end());
  }
  std::vector<Index> up_to(bins_.size());  // values in this bin and those under it
  Index inside = static_cast<Index>(kept.size());
  for (std::size_t bin = 0; bin < bins_.size(); ++bin)
    up_to[bin] = inside += bins_[bin].load(std::memory_order_relaxed);
  if (inside == 0) return {};

  std::vector<T> found;
  for (Index rank : ranks) {
    const Index place = std::clamp<Index>(rank - below, 0, inside - 1);
    if (up_to.empty()) {
      std::nth_element(kept.begin(), kept.begin() + place, kept.end());
      found.push_back(kept[static_cast<std::size_t>(place)]);
    } else {
      const auto bin = std::upper_bound(up_to.begin(), up_to.end(), place) - up_to.begin();
      const Key number = static_cast<Key>(to_ordered(low_)) + (static_cast<Key>(bin) << shift_);
      found.push_back(from_ordered<T>(static_cast<Ordered<T>>(number)));
    }
  }
  return found;
}

template class Watch<float>;
template class Watch<double>;

}  // namespace epruner
