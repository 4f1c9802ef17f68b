#include "decode.hpp"

#include <numeric>

#include "threads.hpp"

namespace epruner {
namespace {

constexpr Index kSerialBelow = Index{1} << 21;  // similarities; threads cost more than they save

// Where the jitter could decide: everything within twice its size of the best.
double contenders_from(const Jitter& jitter, double best) {
  return best - 2 * (jitter.ceiling(best) - best);
}

// From similarity(i, c) of point i to the c-th exemplar.
template <class Similarity>
void assign_by(const Similarity& similarity, Range points, const Indices& exemplars,
               const Jitter& jitter, int threads, Indices& labels) {
  const auto clusters = static_cast<Index>(exemplars.size());
  threads = points.size() * clusters < kSerialBelow ? 1 : Team::advisable(threads);
  std::vector<std::vector<double>> scratch(as_size(threads));
  for (auto& own : scratch) own.resize(exemplars.size());
#pragma omp parallel for schedule(dynamic, 32) num_threads(threads)
  for (Index i = points.first; i < points.last; ++i) {
    Index& label = labels[as_size(i - points.first)];
    if (label != kUnassigned) continue;
    std::vector<double>& s = scratch[thread_number()];
    double best = minus_infinity<double>;
    for (std::size_t c = 0; c < exemplars.size(); ++c) {
      s[c] = similarity(i, static_cast<Index>(c));
      best = s[c] > best ? s[c] : best;
    }
    label = -1;
    if (best == minus_infinity<double>) continue;
    const double from = contenders_from(jitter, best);
    double top = minus_infinity<double>;
    for (std::size_t c = 0; c < exemplars.size(); ++c)
      if (s[c] >= from) {
        const double noisy = jitter(s[c], i, exemplars[c]);
        if (noisy > top) {
          top = noisy;
          label = static_cast<Index>(c);
        }
      }
  }
  for (Index c = 0; c < clusters; ++c)
    if (const Index k = exemplars[as_size(c)]; k >= points.first && k < points.last)
      labels[as_size(k - points.first)] = c;
}

}  // namespace

template <class S>
void assign(const S& similarity, const Indices& exemplars, const Jitter& jitter, int threads,
            Indices& labels) {
  assign_by([&](Index i, Index c) { return similarity(i, exemplars[as_size(c)]); },
            {0, similarity.size()}, exemplars, jitter, threads, labels);
}

template <class T>
void assign(Range points, const KnownPairs<T>& pairs, const Indices& exemplars,
            const Jitter& jitter, int threads, Indices& labels) {
  assign_by([&](Index i, Index c) { return pairs.to_told(i, c); }, points, exemplars, jitter,
            threads, labels);
}

template <class S>
Indices best_members(const S& similarity, const double* preference, const Indices& labels,
                     Index clusters, const Jitter& jitter, int threads) {
  const Index n = similarity.size();
  threads = n * n < kSerialBelow * clusters ? 1 : Team::advisable(threads);
  std::vector<Indices> members(as_size(clusters));
  for (std::size_t i = 0; i < labels.size(); ++i)
    if (labels[i] >= 0) members[as_size(labels[i])].push_back(static_cast<Index>(i));
  std::size_t largest = 0;
  for (const Indices& own : members) largest = std::max(largest, own.size());
  std::vector<std::vector<double>> scratch(as_size(threads));
  for (auto& own : scratch) own.resize(largest + similarity.room());
  Indices best(as_size(clusters));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (Index c = 0; c < clusters; ++c) {
    const Indices& own = members[as_size(c)];
    double* support = scratch[thread_number()].data();
    double slack = similarity.supports(own, support, support + largest);
    double most = minus_infinity<double>;
    for (std::size_t j = 0; j < own.size(); ++j) {
      support[j] += preference[own[j]];
      most = std::max(most, support[j]);
      slack = std::max(slack, 2 * (jitter.ceiling(support[j]) - support[j]));
    }
    double top = minus_infinity<double>;
    best[as_size(c)] = own.front();
    for (std::size_t j = 0; j < own.size(); ++j) {
      if (support[j] < most - slack || std::isinf(support[j])) continue;
      double noisy = 0;  // in the order in which the definition sums
      for (Index i : own) {
        const double s = i == own[j] ? preference[i] : similarity(i, own[j]);
        noisy += jitter(s, i, own[j]);
      }
      if (noisy > top) {
        top = noisy;
        best[as_size(c)] = own[j];
      }
    }
  }
  return best;
}

void sort_by_index(Indices& exemplars, Indices& labels) {
  Indices order(exemplars.size()), rank(exemplars.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::sort(order.begin(), order.end(),
            [&](Index x, Index y) { return exemplars[as_size(x)] < exemplars[as_size(y)]; });
  for (std::size_t c = 0; c < order.size(); ++c) rank[as_size(order[c])] = static_cast<Index>(c);
  for (Index& label : labels)
    if (label >= 0) label = rank[as_size(label)];
  std::sort(exemplars.begin(), exemplars.end());
}

template void assign<float>(Range, const KnownPairs<float>&, const Indices&, const Jitter&, int,
                            Indices&);
template void assign<double>(Range, const KnownPairs<double>&, const Indices&, const Jitter&, int,
                             Indices&);
#define EPRUNER_INSTANTIATE(S)                                                                    \
  template void assign<S>(const S&, const Indices&, const Jitter&, int, Indices&);                \
  template Indices best_members<S>(const S&, const double*, const Indices&, Index, const Jitter&, \
                                   int);
EPRUNER_INSTANTIATE(Matrix<float>)
EPRUNER_INSTANTIATE(Matrix<double>)
EPRUNER_INSTANTIATE(Features<float>)
EPRUNER_INSTANTIATE(Features<double>)

}  // namespace epruner
