#include "nearest.hpp"

namespace epruner {

template <class T>
Nearest<T>::Nearest(Index n, Index want, const T* norms, const Column* points)
    : n_(n),
      no_norms_(as_size(norms ? 0 : n)),
      norms_(norms ? norms : no_norms_.data()),
      scale_(norms ? T(2) : T(1)),
      points_(points),
      lists_(n, n - 1, want) {}

// The pairs of interest of a tile's row: columns from `start` on, and similarities. Which of them
// are for what cannot be foreseen, so they are picked without a branch.
template <class T>
struct Nearest<T>::Hits {
  Index q, start, size;
  std::vector<Column> columns, picked;
  std::vector<T> similarities;

  explicit Hits(Index n)
      : columns(as_size(n + kSpareHits)), picked(as_size(n)), similarities(as_size(n)) {}

  // visit(column, similarity) those that wanted(column, similarity) picks.
  template <class Wanted, class Visit>
  void each(const Wanted& wanted, const Visit& visit) {
    Index chosen = 0;
    for (std::size_t e = 0; e < as_size(size); ++e) {
      picked[as_size(chosen)] = static_cast<Column>(e);
      chosen += wanted(start + columns[e], similarities[e]);
    }
    for (Index p = 0; p < chosen; ++p) {
      const auto e = as_size(picked[as_size(p)]);
      visit(start + columns[e], similarities[e]);
    }
  }
};

// scan(q, start, row, thresholds, hits) looks for the pairs of interest of the tile's row q, from
// column `start` on; watch(hits) sees them.
template <class T>
template <class Scan, class Watch>
void Nearest<T>::offer(const Tile<T>& tile, const Scan& scan, const Watch& watch) {
  const bool diagonal = tile.first_row == tile.first_column;
  std::vector<T> thresholds(as_size(tile.columns));
  Hits hits(tile.columns);
  for (Index k = 0; k < tile.columns; ++k)
    thresholds[as_size(k)] = lists_.threshold(tile.first_column + k);
  for (Index q = 0; q < tile.rows; ++q) {
    const Index i = tile.first_row + q, start = diagonal ? q + 1 : 0;
    const TileRow<T> row{tile.columns - start, tile.dots + q * tile.columns + start,
                         norms_ + tile.first_column + start, scale_, norms_[i]};
    hits.q = q;
    hits.start = start;
    hits.size = scan(q, start, row, thresholds.data() + start, hits.columns.data());
    for (std::size_t e = 0; e < as_size(hits.size); ++e)
      hits.similarities[e] = row.similarity(hits.columns[e]);
    watch(hits);
    const T threshold = lists_.threshold(i);
    hits.each([&](Index, T s) { return s >= threshold; },
              [&](Index k, T s) {
                if (s >= lists_.threshold(i)) push(i, tile.first_column + k, s);
              });
    hits.each([&](Index k, T s) { return s >= thresholds[as_size(k)]; },
              [&](Index k, T s) {
                push(tile.first_column + k, i, s);
                thresholds[as_size(k)] = lists_.threshold(tile.first_column + k);
              });
  }
}

template <class T>
void Nearest<T>::offer(const Tile<T>& tile) {
  if (medians_) return offer_with_medians(tile);
  const auto threshold = [&](Index q) { return lists_.threshold(tile.first_row + q); };
  if (!rank_window_) {
    return offer(
        tile,
        [&](Index q, Index, const TileRow<T>& row, const T* thresholds, Column* hits) {
          return scan_thresholds(row, threshold(q), thresholds, hits);
        },
        [](Hits&) {});
  }
  const Window<T> window = rank_window_->window();
  Index below = 0;
  std::vector<T> inside;
  offer(
      tile,
      [&](Index q, Index, const TileRow<T>& row, const T* thresholds, Column* hits) {
        return scan_thresholds(row, threshold(q), thresholds, window, below, hits);
      },
      [&](Hits& hits) {
        std::size_t size = inside.size();
        inside.resize(size + as_size(hits.size));
        for (std::size_t e = 0; e < as_size(hits.size); ++e) {
          inside[size] = hits.similarities[e];
          size += window.holds(inside[size]);
        }
        inside.resize(size);
      });
  rank_window_->add(below, inside);
}

template <class T>
void Nearest<T>::offer_with_medians(const Tile<T>& tile) {
  const bool diagonal = tile.first_row == tile.first_column;
  const auto columns = as_size(tile.columns);
  std::vector<T> low(columns), above(columns), inside_row(columns);
  std::vector<std::int32_t> below(columns), size(columns);
  const std::unique_ptr<T[]> inside(new T[as_size(tile.columns * tile.rows)]);  // by column
  for (Index k = 0; k < tile.columns; ++k) {
    const Window<T>& window = medians_->window(tile.first_column + k);
    low[as_size(k)] = window.low;
    above[as_size(k)] = window.above;
  }
  Window<T> window;
  Index below_row = 0;
  offer(
      tile,
      [&](Index q, Index start, const TileRow<T>& row, const T* thresholds, Column* hits) {
        const Index i = tile.first_row + q;
        window = medians_->window(i);
        below_row = 0;
        const Windows<T> windows{low.data() + start, above.data() + start, below.data() + start};
        return scan_thresholds(row, lists_.threshold(i), thresholds, window, below_row, windows,
                               hits);
      },
      [&](Hits& hits) {
        Index size_row = 0;
        for (std::size_t e = 0; e < as_size(hits.size); ++e) {
          const T s = hits.similarities[e];
          const auto k = as_size(hits.start + hits.columns[e]);
          inside_row[as_size(size_row)] = s;
          size_row += window.holds(s);
          inside[k * as_size(tile.rows) + as_size(size[k])] = s;
          size[k] += Window<T>{low[k], above[k]}.holds(s);
        }
        medians_->add(tile.first_row + hits.q, tile.columns - hits.start, below_row,
                      inside_row.data(), size_row);
      });
  for (Index k = 0; k < tile.columns; ++k)
    medians_->add(tile.first_column + k, diagonal ? std::min(k, tile.rows) : tile.rows,
                  below[as_size(k)], inside.get() + k * tile.rows, size[as_size(k)]);
}

template <class T>
void Nearest<T>::open_rank_window(T low, T high, Index expected) {
  rank_window_ = std::make_unique<RankWindow<T>>(low, high, expected);
}

template <class T>
void Nearest<T>::open_medians() {
  medians_ = std::make_unique<RowMedians<T>>(n_, n_);
}

template <class T>
void Nearest<T>::medians(T own, T* out, [[maybe_unused]] int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (Index i = 0; i < n_; ++i) {
    const Window<T> window = medians_->window(i);
    medians_->add(i, 1, own < window.low, &own, window.holds(own));
    out[points_[i]] = medians_->median(i);
  }
}

template class Nearest<float>;
template class Nearest<double>;

}  // namespace epruner
