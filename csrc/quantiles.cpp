#include "quantiles.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <utility>

#include "threads.hpp"

namespace epruner {
namespace {

constexpr Index kSmall = Index{1} << 18;  // entries of a matrix that one thread copies
constexpr Index kSample = 1 << 14;
constexpr Index kColumnsAtOnce = 16;
constexpr std::uint64_t kMostBins = std::uint64_t{1} << 22;
constexpr Index kMostKept = Index{1} << 24;  // values

// What holds the wanted position with near certainty, from a strided sample.
template <class T>
std::pair<T, T> bracket(Index n, const T* S, double fraction) {
  const Index total = n * n;
  std::vector<T> sample;
  // An odd step that shares no factor with common row lengths walks all columns.
  const Index step = std::max<Index>(1, total / kSample) | 1;
  for (Index k = 0; k < total; k += step)
    if (S[k] > minus_infinity<T>) sample.push_back(S[k]);
  if (sample.size() < 1024)
    return {std::numeric_limits<T>::lowest(), std::numeric_limits<T>::max()};
  const double size = static_cast<double>(sample.size());
  const double middle = fraction * (size - 1), slack = 3 * std::sqrt(size);
  const auto low = static_cast<Index>(middle - slack), high = static_cast<Index>(middle + slack);
  std::pair<T, T> found{std::numeric_limits<T>::lowest(), std::numeric_limits<T>::max()};
  auto from = sample.begin();
  if (low >= 0) {
    std::nth_element(from, from + low, sample.end());
    from += low;
    found.first = *from;
  }
  if (high < static_cast<Index>(sample.size())) {
    std::nth_element(from, sample.begin() + high, sample.end());
    found.second = sample[as_size(high)];
  }
  return found;
}

// The ranks under the middle of n values: the same one twice where n is odd.
std::pair<Index, Index> middle_ranks(Index n) { return {(n - 1) / 2, n / 2}; }

// A narrow part of the values' span that holds the ranks low and high, and how many lie below it
// and in it. Begins with a part of a sample and closes in on where a straight line through the
// counts expects them; counting is the cheapest pass over a row.
template <class T>
struct Bracket {
  T from, to;
  Index below, inside;
};
template <class T>
Bracket<T> close_in(const T* values, Index n, Index low, Index high) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  std::array<T, 1024> sample;
  const Index size = std::min<Index>(n / 64, 1024);
  for (Index e = 0; e < size; ++e) sample[as_size(e)] = values[e * (n / size)];
  std::sort(sample.begin(), sample.begin() + size);
  const auto slack = static_cast<Index>(2 * std::sqrt(static_cast<double>(size)));
  const Index middle = low * size / n, first = std::max<Index>(middle - slack, 0),
              last = std::min(middle + slack, size - 1);
  Bracket<T> found{sample[as_size(first)], std::nextafter(sample[as_size(last)], infinity), 0, 0};
  found.below = count_between(n, values, -infinity, found.from);
  found.inside = count_between(n, values, found.from, found.to);
  while (found.inside > n / 128) {
    const T width = found.to - found.from;
    const T share = static_cast<T>(low - found.below) / static_cast<T>(found.inside);
    const T from = std::max(found.from, found.from + width * (share - T(1) / 16));
    const T to = std::min(found.to, found.from + width * (share + T(1) / 16));
    const Index inside = count_between(n, values, from, to);
    const Index below = found.below + count_between(n, values, found.from, from);
    if (low < below || high >= below + inside || inside == found.inside) break;
    found = {from, to, below, inside};
  }
  return found;
}

// As select_both, of many values. `where` has room for n.
template <class T>
Neighbours<T> select_both_among(T* values, Index n, Index low, Index high,
                                std::vector<Column>& where) {
  if (n < 1024) return select_both(values, n, low, high);
  const Bracket<T> near = close_in(values, n, low, high);
  if (low < near.below || high >= near.below + near.inside)
    return select_both(values, n, low, high);
  const Index inside = collect_between(n, values, near.from, near.to, where.data());
  for (Index e = 0; e < inside; ++e) values[e] = values[where[as_size(e)]];
  return select_both(values, inside, low - near.below, high - near.below);
}

// The entries of a small matrix, -inf left out.
template <class T>
std::vector<T> finite_entries(Index n, const T* S, bool diagonal) {
  std::vector<T> values(S, S + n * n);
  if (!diagonal)
    for (Index i = 0; i < n; ++i) values[as_size(i * n + i)] = minus_infinity<T>;
  const Index finite = count_between(n * n, values.data(), std::numeric_limits<T>::lowest(),
                                     std::numeric_limits<T>::infinity());
  if (finite < n * n)
    values.erase(std::remove(values.begin(), values.end(), minus_infinity<T>), values.end());
  return values;
}

}  // namespace

template <class T>
T median(T* values, Index n, std::vector<Column>& where) {
  if (count_between(n, values, std::numeric_limits<T>::lowest(),
                    std::numeric_limits<T>::infinity()) < n)
    n = std::remove(values, values + n, minus_infinity<T>) - values;
  if (n == 0) return minus_infinity<T>;
  const auto [low, high] = middle_ranks(n);
  return select_both_among(values, n, low, high, where).middle();
}

template <class T>
Quantile quantile(Index n, const T* S, double fraction, bool diagonal, int threads) {
  if (n * n < kSmall) {
    std::vector<T> values = finite_entries(n, S, diagonal);
    const auto count = static_cast<Index>(values.size());
    if (count == 0) return {};
    const double position = fraction * static_cast<double>(count - 1);
    const auto rank = static_cast<Index>(position);
    std::vector<Column> where(values.size());
    const auto [lower, upper] =
        select_both_among(values.data(), count, rank, std::min(rank + 1, count - 1), where);
    return {static_cast<double>(lower), static_cast<double>(upper),
            position - static_cast<double>(rank), false};
  }
  T low, high;
  std::tie(low, high) = bracket(n, S, fraction);
  while (true) {
    // The bracket is closed: its upper end counts, too.
    const T above = std::nextafter(high, std::numeric_limits<T>::infinity());
    Index count = 0, below = 0;
    std::vector<std::vector<T>> inside(as_size(threads));
    std::vector<std::vector<Column>> where(as_size(threads));
    for (auto& own : where) own.resize(as_size(n));
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : count, below)
    for (Index i = 0; i < n; ++i) {
      const auto thread = thread_number();
      for (const auto& [first, last] : {std::pair<Index, Index>{0, diagonal ? n : i},
                                        std::pair<Index, Index>{diagonal ? n : i + 1, n}}) {
        const T* x = S + i * n + first;
        const Index length = last - first;
        const Column* hit = where[thread].data();
        const Parted row = part(length, x, low, above, where[thread].data());
        count += row.finite;
        below += row.below;
        for (Index e = 0; e < row.inside; ++e) inside[thread].push_back(x[hit[e]]);
      }
    }
    if (count == 0) return {};
    const double position = fraction * static_cast<double>(count - 1);
    const auto rank = static_cast<Index>(position);
    const Index next = std::min(rank + 1, count - 1);
    std::vector<T> values;
    for (const auto& own : inside) values.insert(values.end(), own.begin(), own.end());
    if (rank < below) {
      high = low;
      low = std::numeric_limits<T>::lowest();
      continue;
    }
    if (next - below >= static_cast<Index>(values.size())) {
      low = high;
      high = std::numeric_limits<T>::max();
      continue;
    }
    const auto [lower, upper] =
        select_both(values.data(), static_cast<Index>(values.size()), rank - below, next - below);
    return {static_cast<double>(lower), static_cast<double>(upper),
            position - static_cast<double>(rank), false};
  }
}

template <class T>
void column_medians(Index n, const T* S, T* medians, int threads) {
  if (n * n < 1 << 14) threads = 1;
  const Index groups = (n + kColumnsAtOnce - 1) / kColumnsAtOnce;
  std::vector<std::vector<T>> scratch(as_size(threads));
  std::vector<std::vector<Column>> where(as_size(threads));
  for (auto& own : scratch) own.resize(as_size(n * kColumnsAtOnce));
  for (auto& own : where) own.resize(as_size(n));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (Index group = 0; group < groups; ++group) {
    const auto thread = thread_number();
    T* columns = scratch[thread].data();
    const Index first = group * kColumnsAtOnce, width = std::min(kColumnsAtOnce, n - first);
    for (Index i = 0; i < n; ++i)
      for (Index k = 0; k < width; ++k) columns[k * n + i] = S[i * n + first + k];
    for (Index k = 0; k < width; ++k)
      medians[first + k] = median(columns + k * n, n, where[thread]);
  }
}

template <class T>
RankWindow<T>::RankWindow(T low, T high, Index expected)
    : window_{low + T(0), std::nextafter(high, std::numeric_limits<T>::infinity())} {
  const std::uint64_t span = distance(high);
  if (span >= kMostBins && expected <= kMostKept) return;
  while (span >> shift_ >= kMostBins) ++shift_;
  bins_.resize(as_size((span >> shift_) + 1));
}

template <class T>
void RankWindow<T>::add(Index below, const std::vector<T>& inside) {
  const std::lock_guard lock(adding_);
  below_ += below;
  if (bins_.empty()) {
    kept_.insert(kept_.end(), inside.begin(), inside.end());
    return;
  }
  for (const T value : inside) ++bins_[distance(value) >> shift_];
}

template <class T>
std::vector<T> RankWindow<T>::values_at(const std::vector<Index>& ranks) const {
  std::vector<T> kept = kept_;
  std::vector<Index> up_to(bins_.size());  // values in this bin and those under it
  Index inside = static_cast<Index>(kept.size());
  for (std::size_t bin = 0; bin < bins_.size(); ++bin) up_to[bin] = inside += bins_[bin];
  if (inside == 0) return {};

  std::vector<T> found;
  for (Index rank : ranks) {
    const Index place = std::clamp<Index>(rank - below_, 0, inside - 1);
    if (up_to.empty()) {
      std::nth_element(kept.begin(), kept.begin() + place, kept.end());
      found.push_back(kept[as_size(place)]);
    } else {
      const auto bin = std::upper_bound(up_to.begin(), up_to.end(), place) - up_to.begin();
      const Key number = static_cast<Key>(to_bits(window_.low)) + (static_cast<Key>(bin) << shift_);
      found.push_back(from_bits<T>(static_cast<FloatBits<T>>(number)));
    }
  }
  return found;
}

template Quantile quantile<float>(Index, const float*, double, bool, int);
template Quantile quantile<double>(Index, const double*, double, bool, int);
template void column_medians<float>(Index, const float*, float*, int);
template void column_medians<double>(Index, const double*, double*, int);
template float median<float>(float*, Index, std::vector<Column>&);
template double median<double>(double*, Index, std::vector<Column>&);
template class RankWindow<float>;
template class RankWindow<double>;

}  // namespace epruner
