// Columns that may be the maximum of nearly any row: exemplars to be.
//
// A row must list every pair that may be its maximum. As long as one bound on A holds for all
// columns, a few whose A is near zero make all rows list everything nearer than their second best
// exemplar. So these few are looked at one by one, by a bound on their similarity to each row, and
// do not count for the bound on A.
#pragma once

#include <cstdint>
#include <vector>

#include "row_kernels.hpp"

namespace epruner {

class ProminentColumns {
 public:
  // Of n columns, in so many rows.
  ProminentColumns(Index n, Index rows) : rows_(rows), is_prominent_(as_size(n)) {}

  bool operator[](Index k) const { return is_prominent_[as_size(k)] != 0; }
  void clear();

  // What a row needs to do with the candidates it has: that no other column has A over `most`.
  // Without that it lists more, at a `cost` in looks at a pair, of which a column takes n.
  struct Demand {
    double most;
    Index cost;
  };
  // Add the columns that cost less in all rows than the demands they meet. Returns how many were
  // prominent before; bounds of the new ones are to be set.
  Index add(const double* availability, std::vector<Demand> demands);
  // Have these columns and no others, whose bounds are to be set.
  void restore(const std::vector<Column>& columns);
  // Take up A of an iteration, `availability`.
  void update(const double* availability);

  const std::vector<Column>& columns() const { return columns_; }
  // By column, with places to spare that are -inf: A, and bounds on the q-th row's similarities.
  const float* availability() const { return availability_.data(); }
  float* bounds(Index q) { return bounds_.data() + q * stride_; }
  const float* bounds(Index q) const { return bounds_.data() + q * stride_; }
  Index stride() const { return stride_; }

 private:
  void reserve(Index count);

  Index rows_;
  std::vector<std::uint8_t> is_prominent_;
  std::vector<Column> columns_;
  Index stride_ = 0;
  std::vector<float> availability_, bounds_;  // (stride), (rows, stride)
};

}  // namespace epruner
