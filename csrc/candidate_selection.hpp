// Which candidates a row gets: the next most similar points, from rows of similarities, from a
// sparse matrix or from what a sweep over tiles has found.
#pragma once

#include <memory>

#include "candidate_list.hpp"
#include "decode.hpp"
#include "nearest.hpp"
#include "threads.hpp"

namespace epruner {

// Entries of S from where threads select faster than one.
constexpr Index kSelectTogether = Index{1} << 17;

// Rows of similarities in memory: all of them, or a tile with those of some points in their order.
// With norms, a tile of inner products, from which similarities are made row by row.
template <class T>
struct RowSource {
  const T* base;
  Index stride;
  bool by_point;  // row of point i, the q-th asked for: base + (by_point ? i : q) * stride
  const T* norms = nullptr;

  const T* row(Index q, Index i, T* scratch) const {
    const T* entries = base + (by_point ? i : q) * stride;
    if (!norms) return entries;
    similarities_from_dots(stride, entries, norms[i], norms, scratch);
    return scratch;
  }
};

// Similarities that were computed by a matrix product, and what they really are.
template <class T>
struct Refinement {
  const Features<T>* exact = nullptr;  // evaluates listed pairs again; nullptr: entries are exact
  const T* norms = nullptr;            // squared norms of the features; nullptr: they are 1
  double unit = 0;                     // relative error of the product; 0: entries are exact

  // How far a similarity of about `s` of point i may be from what the product gave.
  double error(Index i, double s) const {
    return unit > 0 ? unit * ((norms ? static_cast<double>(norms[i]) : 1.0) + std::fabs(s)) : 0.0;
  }
};

// What a thread needs to look at whole rows, of which it takes one after the other.
template <class T>
struct Scratch {
  std::vector<T> row, lanes;
  std::vector<Column> columns;
  std::vector<std::uint8_t> listed;
  std::vector<double> saved, similarities;
  NewCandidates found;

  explicit Scratch(Index n)
      : row(as_size(n)),
        columns(as_size(n)),
        listed(as_size(n)),
        saved(as_size(n)),
        similarities(as_size(n)),
        found(n) {}
};

// One for each thread that needs it.
template <class T>
class Scratches {
 public:
  Scratches(Index n, int threads) : n_(n), own_(as_size(threads)) {}
  Scratch<T>& operator[](std::size_t thread) {
    if (!own_[thread]) own_[thread] = std::make_unique<Scratch<T>>(n_);
    return *own_[thread];
  }

 private:
  Index n_;
  std::vector<std::unique_ptr<Scratch<T>>> own_;
};

// What a row will list once the similarities of so many pairs are known.
struct Addition {
  double below, unlisted;  // the row's, then
  Index count;
};

// The candidates of points in a range. Here and below, `availability` is that of all pairs of a
// column that store none.
class CandidateLists {
 public:
  struct Row : CandidateList {
    double below = std::numeric_limits<double>::infinity();  // raw entries from here up are listed
    double unlisted = std::numeric_limits<double>::infinity();  // bound on everything unlisted
  };

  CandidateLists(Index n, Range points, const Jitter& jitter, int threads);

  Row& operator[](Index i) { return rows_[as_size(i - points_.first)]; }
  const Row& operator[](Index i) const { return rows_[as_size(i - points_.first)]; }
  Arena& arena(std::size_t thread) { return arenas_[thread]; }

  // How many more candidates point i gets when it runs out: as many again as it has.
  Index next_want(Index i) const;
  // List at least `want` more candidates of point i, whose row is x. False where x holds what is no
  // similarity.
  template <class T>
  bool extend(Index i, const T* x, Index want, const Refinement<T>& refinement,
              const double* availability, Scratch<T>& scratch, Arena& arena);
  // List everything that is, before its jitter, at least `low`.
  template <class T>
  void extend_to(Index i, const T* x, T low, const Refinement<T>& refinement,
                 const double* availability, Scratch<T>& scratch, Arena& arena);
  // The same in two steps: which pairs that takes, the first `count` of `scratch.columns`, and
  // what to do once their similarities, still without jitter, are known. The threshold that
  // extend() would take first, NaN where x holds what is no similarity.
  template <class T>
  T next_threshold(Index i, const T* x, Index want, Scratch<T>& scratch) const;
  template <class T>
  Addition propose(Index i, const T* x, T low, const Refinement<T>& refinement,
                   Scratch<T>& scratch) const;
  void accept(Index i, const Addition& addition, const Column* columns, const double* similarities,
              const double* availability, NewCandidates& found, Arena& arena);
  // How far the jittered similarity of a pair may be from the entry `s` of point i's row.
  template <class T>
  double uncertainty(Index i, double s, const Refinement<T>& refinement) const;
  // Entries of point i's row from here up are listed, but for those that uncertainty kept off.
  template <class T>
  double mostly_listed_from(Index i, const Refinement<T>& refinement) const {
    const double below = (*this)[i].below;
    return below + 2 * uncertainty(i, below, refinement);
  }

  // Give every row its candidates at once: the stored entries of a sparse matrix, all there is, ...
  void fill_from_csr(const Index* offsets, const Column* columns, const double* similarities,
                     const double* availability);
  // ... lists with their jitter, in no order, that hold everything over `bounds`, by row, ...
  void fill_from_lists(const Index* offsets, const Column* columns, const double* similarities,
                       const double* bounds, const double* availability);
  // ... or the nearest neighbours of all points that a sweep over tiles has found.
  template <class T>
  void fill_from_nearest(const Nearest<T>& nearest, const Refinement<T>& refinement,
                         const double* availability);

  // The most similar exemplar of every point, read off its list: position[k] >= 0 where k is one.
  // kUnassigned where the list does not tell.
  void assign(const Indices& position, Indices& labels, int threads) const;

  Index longest() const;
  // Forget all messages.
  void reset();

 private:
  template <class T>
  double bound(Index i, double low, bool everything, const Refinement<T>& refinement) const;
  Index n_;
  Range points_;
  Jitter jitter_;
  std::vector<Row> rows_;
  std::vector<Arena> arenas_;  // one per thread
};

}  // namespace epruner
