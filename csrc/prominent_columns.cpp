#include "prominent_columns.hpp"

#include <algorithm>
#include <cmath>

namespace epruner {
namespace {

constexpr Index kWidth = 8;  // columns looked at together

}  // namespace

void ProminentColumns::clear() {
  std::fill(is_prominent_.begin(), is_prominent_.end(), std::uint8_t{0});
  columns_.clear();
  stride_ = 0;
  availability_.clear();
  bounds_.clear();
}

void ProminentColumns::reserve(Index count) {
  if (count <= stride_) return;
  const Index stride = std::max(2 * stride_, (count + kWidth - 1) / kWidth * kWidth);
  std::vector<float> bounds(as_size(rows_ * stride), minus_infinity<float>);
  for (Index q = 0; q < rows_; ++q)
    std::copy_n(bounds_.data() + q * stride_, stride_, bounds.data() + q * stride);
  bounds_ = std::move(bounds);
  availability_.resize(as_size(stride), minus_infinity<float>);
  stride_ = stride;
}

Index ProminentColumns::add(const double* availability, std::vector<Demand> demands) {
  const auto n = static_cast<Index>(is_prominent_.size());
  const auto before = static_cast<Index>(columns_.size());
  Index cost = 0;
  double least = std::numeric_limits<double>::infinity();
  for (const Demand& demand : demands) {
    cost += demand.cost;
    least = std::min(least, demand.most);
  }
  const Index most = cost / n;  // columns that could be worth it
  if (most == 0) return before;
  std::vector<Column> columns;
  for (Index k = 0; k < n; ++k)
    if (!(*this)[k] && availability[k] > least) columns.push_back(static_cast<Column>(k));
  const auto all = static_cast<Index>(columns.size()), size = std::min(most + 1, all);
  std::partial_sort(
      columns.begin(), columns.begin() + size, columns.end(), [&](Column x, Column y) {
        return availability[x] > availability[y] || (availability[x] == availability[y] && x < y);
      });
  std::sort(demands.begin(), demands.end(),
            [](const Demand& x, const Demand& y) { return x.most > y.most; });

  // The first `count` of them meet the demands for at most the A of the next.
  Index best = 0, best_cost = cost;
  auto next = demands.begin();
  for (Index count = 0; count <= std::min(most, all); ++count) {
    const double left =
        count < all ? availability[columns[as_size(count)]] : minus_infinity<double>;
    for (; next != demands.end() && next->most >= left; ++next) cost -= next->cost;
    if (cost + count * n < best_cost) {
      best = count;
      best_cost = cost + count * n;
    }
  }
  std::sort(columns.begin(), columns.begin() + best);  // as they lie in memory
  reserve(before + best);
  for (Index q = 0; q < best; ++q) {
    const Column k = columns[as_size(q)];
    columns_.push_back(k);
    is_prominent_[as_size(k)] = 1;
  }
  update(availability);
  return before;
}

void ProminentColumns::restore(const std::vector<Column>& columns) {
  clear();
  reserve(static_cast<Index>(columns.size()));
  columns_ = columns;
  for (Column k : columns) is_prominent_[as_size(k)] = 1;
}

void ProminentColumns::update(const double* availability) {
  for (std::size_t q = 0; q < columns_.size(); ++q)
    availability_[q] = rounded_up(availability[columns_[q]]);
}

}  // namespace epruner
