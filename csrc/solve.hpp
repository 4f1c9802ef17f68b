// From similarities to clusters: messages, then decoding; one problem, or several at once.
#pragma once

#include "active_set.hpp"
#include "decode.hpp"
#include "dense.hpp"

namespace epruner {

// Messages for similarities (n, n) in memory: fills the active set, which must be new.
template <class T>
Outcome solve_matrix(ActiveSet& active_set, const T* S, const Poll& poll);

// Assign the points, move every exemplar to its cluster's best member, assign again. The exemplars
// come out ascending. An active set, where there is one, knows the nearest exemplars of most
// points.
template <class Similarity>
Indices decode(const Similarity& similarity, const ActiveSet* active_set, const double* preference,
               const Jitter& jitter, int threads, Indices& exemplars);

template <class T>
struct Problem {
  Index n;
  const T* S;                // (n, n)
  const double* preference;  // (n)
};

struct Clustering {
  Outcome outcome;
  Indices exemplars, labels;
};

// Problems side by side, each on one thread. Their answers do not depend on each other.
template <class T>
std::vector<Clustering> cluster_many(const std::vector<Problem<T>>& problems, const Jitter& jitter,
                                     const Settings& settings, const Poll& poll);

}  // namespace epruner
