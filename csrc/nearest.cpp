#include "nearest.hpp"

#include <algorithm>

namespace epruner {
namespace {

constexpr Index kRoomPerWanted = 2;  // a full row is cut back to what is wanted

}  // namespace

template <class T>
Nearest<T>::Nearest(Index n, Index want, const T* norms)
    : n_(n),
      want_(std::min(want, n - 1)),
      room_(std::min(n - 1, kRoomPerWanted * want_)),
      norms_(norms),
      rows_(as_size(n)),
      values_(new T[as_size(n * room_)]),
      columns_(new Column[as_size(n * room_)]) {}

template <class T>
void Nearest<T>::push(Index i, Column column, T similarity) {
  Row& row = rows_[as_size(i)];
  T* values = values_.get() + i * room_;
  Column* columns = columns_.get() + i * room_;
  if (row.size == room_ && room_ < n_ - 1) {
    std::vector<std::pair<T, Column>> all(as_size(room_));
    for (Index e = 0; e < room_; ++e) all[as_size(e)] = {values[e], columns[e]};
    std::nth_element(all.begin(), all.begin() + (want_ - 1), all.end(),
                     [](const auto& x, const auto& y) {
                       return x.first > y.first || (x.first == y.first && x.second < y.second);
                     });
    for (Index e = 0; e < want_; ++e) {
      values[e] = all[as_size(e)].first;
      columns[e] = all[as_size(e)].second;
    }
    row.size = want_;
    row.threshold = all[as_size(want_ - 1)].first;
    if (similarity < row.threshold) return;
  }
  values[row.size] = similarity;
  columns[row.size] = column;
  ++row.size;
}

template <class T>
void Nearest<T>::offer(const Tile<T>& tile) {
  const bool diagonal = tile.first_row == tile.first_column;
  std::vector<T> s(as_size(tile.columns));
  std::vector<T> thresholds(as_size(tile.columns));
  std::vector<Column> hits(as_size(tile.columns));
  for (Index j = 0; j < tile.columns; ++j) thresholds[as_size(j)] = unlisted(tile.first_column + j);
  constexpr T infinity = std::numeric_limits<T>::infinity();
  for (Index q = 0; q < tile.rows; ++q) {
    const Index i = tile.first_row + q;
    const T* dots = tile.dots + q * tile.columns;
    if (norms_)
      similarities_from_dots(tile.columns, dots, norms_[i], norms_ + tile.first_column, s.data());
    else
      std::copy_n(dots, tile.columns, s.data());
    Index found = collect_between(tile.columns, s.data(), unlisted(i), infinity, hits.data());
    for (Index e = 0; e < found; ++e) {
      const Column k = hits[as_size(e)];
      if (!(diagonal && k == q)) push(i, static_cast<Column>(tile.first_column + k), s[as_size(k)]);
    }
    if (rank_window_) {  // every row of tiles is in one thread's hands at a time
      const Index start = diagonal ? q + 1 : 0;
      rank_window_->add(tile.first_row, tile.columns - start, s.data() + start, hits.data());
    }
    if (diagonal) continue;
    found = collect_at_least(tile.columns, s.data(), thresholds.data(), hits.data());
    for (Index e = 0; e < found; ++e) {
      const auto k = as_size(hits[as_size(e)]);
      const Index point = tile.first_column + static_cast<Index>(k);
      push(point, static_cast<Column>(i), s[k]);
      thresholds[k] = unlisted(point);
    }
  }
}

template <class T>
void Nearest<T>::open_rank_window(T low, T high, Index expected) {
  rank_window_ = std::make_unique<RankWindow<T>>(low, high, expected, n_);
}

template class Nearest<float>;
template class Nearest<double>;

}  // namespace epruner
