#include "nearest.hpp"

#include "exact_lists.hpp"

namespace epruner {

template <class T, class Lists>
Nearest<T, Lists>::Nearest(Index n, const T* norms, Lists lists)
    : n_(n),
      no_norms_(as_size(norms ? 0 : n)),
      norms_(norms ? norms : no_norms_.data()),
      scale_(norms ? T(2) : T(1)),
      lists_(std::move(lists)) {}

template <class T, class Lists>
void Nearest<T, Lists>::start_from_sample(const Tile<T>& tile, Index rank) {
  std::vector<T> similarities(as_size(tile.columns)), lanes(as_size(kLanes<T>));
  constexpr T infinity = std::numeric_limits<T>::infinity();
  for (Index q = 0; q < tile.rows; ++q) {
    const Index i = tile.first_row + q;
    const TileRow<T> row{tile.columns, tile.dots + q * tile.columns, norms_ + tile.first_column,
                         scale_, norms_[i]};
    for (Index k = 0; k < tile.columns; ++k) similarities[as_size(k)] = row.similarity(k);
    // Few lanes hold two of the largest.
    const Span<T> span = lane_maxima(tile.columns, i - tile.first_column, similarities.data(),
                                     infinity, lanes.data());
    if (span.least > minus_infinity<T>)
      lists_.start_at(i, bisect(kLanes<T>, lanes.data(), span.least, span.most, infinity, rank));
  }
}

// The pairs of interest of a tile's row q: columns from `start` on, and similarities. Which of them
// are for what cannot be foreseen, so they are picked without a branch.
template <class T, class Lists>
struct Nearest<T, Lists>::RowHits {
  Index q, start;
  std::vector<Column> columns, picked;
  std::vector<T> similarities;
  Hits<T> found;

  explicit RowHits(std::size_t n)
      : columns(n), picked(n), similarities(n), found{0, columns.data(), similarities.data()} {}

  // visit(column, similarity) those that wanted(column, similarity) picks; soon(column) comes some
  // visits before.
  template <class Wanted, class Soon, class Visit>
  void each(const Wanted& wanted, const Soon& soon, const Visit& visit) {
    Index chosen = 0;
    for (std::size_t e = 0; e < as_size(found.size); ++e) {
      picked[as_size(chosen)] = static_cast<Column>(e);
      chosen += wanted(start + columns[e], similarities[e]);
    }
    constexpr Index kAhead = 4;
    for (Index p = 0; p < std::min(kAhead, chosen); ++p)
      soon(start + columns[as_size(picked[as_size(p)])]);
    for (Index p = 0; p < chosen; ++p) {
      if (p + kAhead < chosen) soon(start + columns[as_size(picked[as_size(p + kAhead)])]);
      const auto e = as_size(picked[as_size(p)]);
      visit(start + columns[e], similarities[e]);
    }
  }
};

// look(q, start, row, thresholds, hits) scans the tile's row q, from column `start` on; watch(hits)
// sees what was found.
template <class T, class Lists>
template <class Look, class Watch>
void Nearest<T, Lists>::offer(const Tile<T>& tile, const Look& look, const Watch& watch) {
  const bool diagonal = tile.first_row == tile.first_column;
  const Index columns = tile.columns, all = tile.rows * columns;
  const std::size_t room = as_size(columns + kSpare);
  std::vector<T> thresholds(room), norms(room, std::numeric_limits<T>::quiet_NaN()), last(room);
  std::copy_n(norms_ + tile.first_column, columns, norms.data());
  for (Index k = 0; k < columns; ++k)
    thresholds[as_size(k)] = lists_.threshold(tile.first_column + k);
  RowHits hits(room);
  for (Index q = 0; q < tile.rows; ++q) {
    const Index i = tile.first_row + q, start = diagonal ? q + 1 : 0;
    const T* dots = tile.dots + q * columns;
    if (q * columns + columns + kSpare > all) {  // nothing may be read behind the tile
      std::copy_n(dots, columns, last.data());
      dots = last.data();
    }
    hits.q = q;
    hits.start = start;
    look(q, start,
         TileRow<T>{columns - start, dots + start, norms.data() + start, scale_, norms_[i]},
         thresholds.data() + start, hits.found);
    watch(hits);
    const T threshold = lists_.threshold(i);
    hits.each([&](Index, T s) { return s >= threshold; },
              [&](Index k) { lists_.prefetch(i, tile.first_column + k); },
              [&](Index k, T s) {
                if (s >= lists_.threshold(i)) lists_.push(i, tile.first_column + k, s);
              });
    hits.each([&](Index k, T s) { return s >= thresholds[as_size(k)]; },
              [&](Index k) { lists_.prefetch(tile.first_column + k, i); },
              [&](Index k, T s) {
                lists_.push(tile.first_column + k, i, s);
                thresholds[as_size(k)] = lists_.threshold(tile.first_column + k);
              });
  }
}

template <class T, class Lists>
void Nearest<T, Lists>::offer(const Tile<T>& tile) {
  if (medians_) return offer_with_medians(tile);
  const auto threshold = [&](Index q) { return lists_.threshold(tile.first_row + q); };
  if (!rank_window_) {
    return offer(
        tile,
        [&](Index q, Index, const TileRow<T>& row, const T* thresholds, Hits<T>& hits) {
          scan(row, threshold(q), thresholds, hits);
        },
        [](RowHits&) {});
  }
  const Window<T> window = rank_window_->window();
  Index below = 0;
  std::vector<T> inside;
  offer(
      tile,
      [&](Index q, Index, const TileRow<T>& row, const T* thresholds, Hits<T>& hits) {
        scan(row, threshold(q), thresholds, window, below, hits);
      },
      [&](RowHits& hits) {
        std::size_t size = inside.size();
        inside.resize(size + as_size(hits.found.size));
        for (std::size_t e = 0; e < as_size(hits.found.size); ++e) {
          inside[size] = hits.similarities[e];
          size += window.holds(inside[size]);
        }
        inside.resize(size);
      });
  rank_window_->add(below, inside);
}

template <class T, class Lists>
void Nearest<T, Lists>::offer_with_medians(const Tile<T>& tile) {
  const bool diagonal = tile.first_row == tile.first_column;
  const auto columns = as_size(tile.columns), room = columns + kSpare;
  std::vector<T> low(room), above(room), inside_row(columns);
  std::vector<Count<T>> below(room);
  std::vector<std::int32_t> size(columns);
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
      [&](Index q, Index start, const TileRow<T>& row, const T* thresholds, Hits<T>& hits) {
        const Index i = tile.first_row + q;
        window = medians_->window(i);
        below_row = 0;
        const Windows<T> windows{low.data() + start, above.data() + start, below.data() + start};
        scan(row, lists_.threshold(i), thresholds, window, below_row, windows, hits);
      },
      [&](RowHits& hits) {
        Index size_row = 0;
        for (std::size_t e = 0; e < as_size(hits.found.size); ++e) {
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

template <class T, class Lists>
void Nearest<T, Lists>::open_rank_window(T low, T high, Index expected) {
  rank_window_ = std::make_unique<RankWindow<T>>(low, high, expected);
}

template <class T, class Lists>
void Nearest<T, Lists>::open_medians() {
  medians_ = std::make_unique<RowMedians<T>>(n_, n_);
}

template <class T, class Lists>
void Nearest<T, Lists>::medians(T own, T* out, [[maybe_unused]] int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (Index i = 0; i < n_; ++i) {
    const Window<T> window = medians_->window(i);
    medians_->add(i, 1, own < window.low, &own, window.holds(own));
    out[i] = medians_->median(i);
  }
}

template class Nearest<float>;
template class Nearest<double>;
template class Nearest<float, ExactLists<float>>;
template class Nearest<double, ExactLists<double>>;

}  // namespace epruner
