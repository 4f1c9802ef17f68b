// The steps from exemplars to labels; see decode() in solve.hpp.
#pragma once

#include "similarity.hpp"

namespace epruner {

// labels[i] <- the position in `exemplars` of the most similar one; -1 where none may be linked.
// Only points with labels[i] == kUnassigned are assigned.
constexpr Index kUnassigned = -2;
template <class S>
void assign(const S& similarity, const Indices& exemplars, const Jitter& jitter, int threads,
            Indices& labels);
// The same for points in a range, from their similarities to the exemplars, which are told.
template <class T>
void assign(Range points, const KnownPairs<T>& pairs, const Indices& exemplars,
            const Jitter& jitter, int threads, Indices& labels);

// The member of every cluster that the others and its own preference support most.
template <class S>
Indices best_members(const S& similarity, const double* preference, const Indices& labels,
                     Index clusters, const Jitter& jitter, int threads);

// Put the exemplars in ascending order and rename the labels to match.
void sort_by_index(Indices& exemplars, Indices& labels);

}  // namespace epruner
