// The only file that knows Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <stdexcept>
#include <variant>

#include "exact_lists.hpp"
#include "solve.hpp"

namespace py = pybind11;
using namespace py::literals;
using namespace epruner;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Lets Python's signal handlers run now and then while the GIL is released.
class SignalPoll {
 public:
  bool operator()() {
    const auto now = Clock::now();
    if (raised_ || now < next_) return raised_;
    next_ = now + kEvery;
    const py::gil_scoped_acquire gil;
    raised_ = PyErr_CheckSignals() != 0;
    return raised_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kEvery{50};
  Clock::time_point next_ = Clock::now() + kEvery;
  bool raised_ = false;
};

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

template <class T>
Index square_size(const Array<T>& S) {
  require(S.ndim() == 2 && S.shape(0) == S.shape(1), "S must be a square matrix");
  require(S.shape(0) <= std::numeric_limits<Column>::max(), "more than 2^31 - 1 points");
  return S.shape(0);
}

template <class T>
const T* of_length(const Array<T>& values, Index n) {
  require(values.ndim() == 1 && values.shape(0) == n, "array of the wrong length");
  return values.data();
}

template <class U, class Container>
py::array_t<U> to_array(const Container& values) {
  py::array_t<U> out(static_cast<py::ssize_t>(values.size()));
  std::copy(values.begin(), values.end(), out.mutable_data());
  return out;
}

using Seed = std::optional<std::uint64_t>;

template <class T>
Jitter jitter_for(Seed seed) {
  return Jitter(seed, sizeof(T) == sizeof(float));
}

// ---- Similarities in memory ---------------------------------------------------------------------

py::tuple messages_of(const Outcome& outcome) {
  if (outcome.status == Status::interrupted) throw py::error_already_set();
  return py::make_tuple(to_array<bool>(outcome.is_exemplar), outcome.n_iter,
                        outcome.status == Status::converged);
}

template <class T>
py::tuple py_solve(const Array<T>& S, ActiveSet& active_set) {
  require(square_size(S) == active_set.size(), "S must have a row and a column for every point");
  Outcome outcome;
  SignalPoll signals;
  const Poll poll = std::ref(signals);
  {
    const py::gil_scoped_release release;
    outcome = solve_matrix(active_set, S.data(), poll);
  }
  return messages_of(outcome);
}

template <class T>
py::tuple py_solve_dense(const Array<T>& S, const Array<double>& preference, double damping,
                         Index max_iter, Index convergence_iter, Seed seed, int n_threads) {
  const Index n = square_size(S);
  const double* own = of_length(preference, n);
  const Settings settings{damping, max_iter, convergence_iter, n_threads};
  Outcome outcome;
  SignalPoll signals;
  const Poll poll = std::ref(signals);
  {
    const py::gil_scoped_release release;
    outcome = solve_dense(n, S.data(), own, jitter_for<T>(seed), settings, poll);
  }
  return messages_of(outcome);
}

template <class Similarity>
py::tuple decoded(const Similarity& similarity, const ActiveSet* active_set,
                  const Array<double>& preference, const Array<Index>& exemplars,
                  const Jitter& jitter, int n_threads) {
  const Index n = similarity.size();
  const double* own = of_length(preference, n);
  Indices found(exemplars.data(), exemplars.data() + exemplars.size());
  for (Index k : found) require(k >= 0 && k < n, "exemplar out of range");
  require(!active_set || active_set->size() == n, "active set of another number of points");
  Indices labels;
  {
    const py::gil_scoped_release release;
    labels = decode(similarity, active_set, own, jitter, n_threads, found);
  }
  return py::make_tuple(to_array<Index>(found), to_array<Index>(labels));
}

template <class T>
py::tuple py_decode(const Array<T>& S, const Array<double>& preference,
                    const Array<Index>& exemplars, Seed seed, int n_threads,
                    const ActiveSet* active_set) {
  return decoded(Matrix<T>(square_size(S), S.data()), active_set, preference, exemplars,
                 jitter_for<T>(seed), n_threads);
}

template <class T>
py::list py_cluster_many(const std::vector<Array<T>>& S,
                         const std::vector<Array<double>>& preferences, double damping,
                         Index max_iter, Index convergence_iter, Seed seed, int n_threads) {
  require(S.size() == preferences.size(), "one preference array for each problem");
  std::vector<Problem<T>> problems;
  for (std::size_t q = 0; q < S.size(); ++q) {
    const Index n = square_size(S[q]);
    problems.push_back({n, S[q].data(), of_length(preferences[q], n)});
  }
  const Settings settings{damping, max_iter, convergence_iter, n_threads};
  SignalPoll signals;
  const Poll poll = std::ref(signals);
  std::vector<Clustering> answers;
  {
    const py::gil_scoped_release release;
    answers = cluster_many(problems, jitter_for<T>(seed), settings, poll);
  }
  for (const Clustering& answer : answers)
    if (answer.outcome.status == Status::interrupted) throw py::error_already_set();
  py::list result;
  for (const Clustering& answer : answers) {
    const Outcome& outcome = answer.outcome;
    result.append(py::make_tuple(to_array<Index>(answer.exemplars), to_array<Index>(answer.labels),
                                 outcome.n_iter, outcome.status == Status::converged));
  }
  return result;
}

template <class T>
py::object py_quantile(const Array<T>& S, double fraction, bool diagonal, int n_threads) {
  const Index n = square_size(S);
  Quantile found;
  {
    const py::gil_scoped_release release;
    found = quantile(n, S.data(), fraction, diagonal, n_threads);
  }
  if (found.empty) return py::none();
  return py::make_tuple(found.low, found.high, found.between);
}

template <class T>
Array<T> py_column_medians(const Array<T>& S, int n_threads) {
  const Index n = square_size(S);
  Array<T> medians(n);
  T* out = medians.mutable_data();
  {
    const py::gil_scoped_release release;
    column_medians(n, S.data(), out, n_threads);
  }
  return medians;
}

template <class T>
py::tuple py_centre(const Array<T>& X) {
  require(X.ndim() == 2, "X must have two dimensions");
  Array<T> centred({X.shape(0), X.shape(1)}), norms(X.shape(0));
  T *out = centred.mutable_data(), *lengths = norms.mutable_data();
  {
    const py::gil_scoped_release release;
    centre(X.shape(0), X.shape(1), X.data(), out, lengths);
  }
  return py::make_tuple(centred, norms);
}

template <class T>
void py_distances_from_dots(Array<T>& dots, const Array<T>& X, const Array<T>& norms,
                            int n_threads) {
  const Index n = square_size(dots);
  require(X.ndim() == 2 && X.shape(0) == n, "X must have a row for every point");
  const T* squared_norms = of_length(norms, n);
  T* S = dots.mutable_data();
  const py::gil_scoped_release release;
  distances_from_dots(n, X.shape(1), S, X.data(), squared_norms, n_threads);
}

// ---- Similarities from features -----------------------------------------------------------------

// Features (n, d) that stay alive with whatever evaluates them.
template <class T>
struct PyFeatures {
  Array<T> X;
  std::optional<Array<T>> norms;
  Features<T> exact;
  double unit;

  PyFeatures(Array<T> features, std::optional<Array<T>> squared_norms, double relative_error)
      : X(std::move(features)),
        norms(std::move(squared_norms)),
        exact(X.shape(0), X.shape(1), X.data(), !norms.has_value()),
        unit(relative_error) {
    require(X.ndim() == 2, "X must have two dimensions");
    require(X.shape(0) <= std::numeric_limits<Column>::max(), "more than 2^31 - 1 points");
    if (norms) of_length(*norms, X.shape(0));
  }
  const T* norm_data() const { return norms ? norms->data() : nullptr; }
  Refinement<T> refinement() const { return {&exact, norm_data(), unit}; }
};

template <class T>
struct PyNearest {
  Array<Column> points;  // by position
  std::optional<Array<T>> norms;
  Nearest<T> nearest;

  PyNearest(Array<Column> order, std::optional<Array<T>> squared_norms, Index want)
      : points(std::move(order)),
        norms(std::move(squared_norms)),
        nearest(points.size(), norms ? of_length(*norms, points.size()) : nullptr,
                ProductLists<T>(points.size(), want, points.data())) {
    for (py::ssize_t q = 0; q < points.size(); ++q)
      require(points.data()[q] >= 0 && points.data()[q] < points.size(), "point out of range");
  }

  void offer(const Array<T>& dots, Index first_row, Index first_column) {
    const Tile<T> tile = checked(dots, first_row, first_column);
    require(first_row != first_column || tile.rows <= tile.columns, "tile out of range");
    const py::gil_scoped_release release;
    nearest.offer(tile);
  }
  void start_from_sample(const Array<T>& dots, Index first_row, Index rank) {
    const Tile<T> tile = checked(dots, first_row, 0);
    const py::gil_scoped_release release;
    nearest.start_from_sample(tile, rank);
  }

 private:
  Tile<T> checked(const Array<T>& dots, Index first_row, Index first_column) const {
    require(dots.ndim() == 2, "a tile must have two dimensions");
    const Tile<T> tile{dots.data(), first_row, dots.shape(0), first_column, dots.shape(1)};
    require(first_row >= 0 && first_row + tile.rows <= points.size() && first_column >= 0 &&
                first_column + tile.columns <= points.size(),
            "tile out of range");
    return tile;
  }
};

// ---- Blocks of features that meet ---------------------------------------------------------------

template <class T>
struct PyBlock {
  Array<T> X;
  std::optional<Array<T>> norms;
  Array<Column> points;

  Block<T> checked(Index d) const {
    require(X.ndim() == 2 && X.shape(1) == d, "X must have two dimensions");
    of_length(points, X.shape(0));
    return {X.shape(0), X.data(), norms ? of_length(*norms, X.shape(0)) : nullptr, points.data()};
  }
};

// The nearest points of a block's, found in it and in those that visit it one after the other.
template <class T>
struct PyBlockNearest {
  PyBlock<T> own, visitor;
  Index n, most_visitors, want;
  std::vector<T> norms;  // of the own points and the visitors
  Nearest<T, ExactLists<T>> nearest;

  PyBlockNearest(Array<T> X, std::optional<Array<T>> own_norms, Array<Column> points,
                 Index visitors, Index n_points, Index n_wanted, double unit, Seed seed)
      : own{std::move(X), std::move(own_norms), std::move(points)},
        n(n_points),
        most_visitors(visitors),
        want(n_wanted),
        norms(as_size(own.norms ? own.X.shape(0) + visitors : 0)),
        nearest(own.X.shape(0) + visitors, own.norms ? norms.data() : nullptr,
                ExactLists<T>(own.checked(own.X.shape(1)), visitors, own.X.shape(1), n_points,
                              n_wanted, !own.norms, unit, jitter_for<T>(seed))) {
    if (own.norms) std::copy_n(own.norms->data(), own.X.shape(0), norms.begin());
  }

  void receive(Array<T> X, std::optional<Array<T>> visitor_norms, Array<Column> points,
               const Array<double>& thresholds) {
    visitor = {std::move(X), std::move(visitor_norms), std::move(points)};
    const Block<T> block = visitor.checked(own.X.shape(1));
    require(block.size <= most_visitors && !block.norms == !own.norms, "not such a visitor");
    if (block.norms) std::copy_n(block.norms, block.size, norms.begin() + own.X.shape(0));
    nearest.lists().receive(block, of_length(thresholds, block.size));
  }
  void offer(const Array<T>& dots, Index first_row, Index first_column) {
    const Tile<T> tile = checked(dots, first_row, first_column);
    require(first_row != first_column || tile.rows <= tile.columns, "tile out of range");
    const py::gil_scoped_release release;
    nearest.offer(tile);
  }
  void start_from_sample(const Array<T>& dots, Index first_row, Index rank) {
    const Tile<T> tile = checked(dots, first_row, own.X.shape(0));
    const py::gil_scoped_release release;
    nearest.start_from_sample(tile, rank);
  }
  // What visitors have found here: how many each, which and how similar.
  py::tuple found() const {
    const TopLists<double>& lists = nearest.lists().lists();
    const Index first = own.X.shape(0), size = nearest.lists().visitor().size;
    Index total = 0;
    for (Index q = 0; q < size; ++q) total += lists.size(first + q);
    Array<Index> counts(size);
    Array<Column> columns(total);
    Array<double> similarities(total);
    Column* k = columns.mutable_data();
    double* s = similarities.mutable_data();
    for (Index q = 0; q < size; ++q) {
      const Index count = counts.mutable_data()[q] = lists.size(first + q);
      k = std::copy_n(lists.columns(first + q), count, k);
      s = std::copy_n(lists.values(first + q), count, s);
    }
    return py::make_tuple(counts, columns, similarities);
  }
  // What own points have found elsewhere, in the same form.
  void add(const Array<Index>& counts, const Array<Column>& columns,
           const Array<double>& similarities) {
    const Index* count = of_length(counts, own.X.shape(0));
    Index total = 0;
    for (py::ssize_t q = 0; q < counts.size(); ++q) total += count[q];
    const Column* k = of_length(columns, total);
    const double* s = of_length(similarities, total);
    for (Index q = 0; q < counts.size(); ++q)
      for (Index e = 0; e < count[q]; ++e) nearest.lists().add(q, *k++, *s++);
  }
  Array<double> thresholds() const {
    Array<double> out(own.X.shape(0));
    for (Index q = 0; q < out.size(); ++q)
      out.mutable_data()[q] = nearest.lists().lists().threshold(q);
    return out;
  }
  // The most similar points of own ones but for the least of those wanted, and the similarity of
  // that: a bound on all others.
  py::tuple lists() const {
    const TopLists<double>& lists = nearest.lists().lists();
    const Index size = own.X.shape(0);
    Array<Index> counts(size);
    Array<double> bounds(size);
    std::vector<Column> columns;
    std::vector<double> similarities, sorted;
    for (Index q = 0; q < size; ++q) {
      const Index count = lists.size(q);
      const double* s = lists.values(q);
      double bound = lists.threshold(q);
      if (count >= want) {
        sorted.assign(s, s + count);
        std::nth_element(sorted.begin(), sorted.begin() + want - 1, sorted.end(), std::greater<>());
        bound = sorted[as_size(want - 1)];
      }
      if (count == n - 1) bound = minus_infinity<double>;
      const auto before = static_cast<Index>(columns.size());
      for (Index e = 0; e < count; ++e)
        if (s[e] > bound) {
          columns.push_back(lists.columns(q)[e]);
          similarities.push_back(s[e]);
        }
      counts.mutable_data()[q] = static_cast<Index>(columns.size()) - before;
      bounds.mutable_data()[q] = bound;
    }
    return py::make_tuple(counts, to_array<Column>(columns), to_array<double>(similarities),
                          bounds);
  }

 private:
  Tile<T> checked(const Array<T>& dots, Index first_row, Index first_column) const {
    require(dots.ndim() == 2, "a tile must have two dimensions");
    const Tile<T> tile{dots.data(), first_row, dots.shape(0), first_column, dots.shape(1)};
    const Index own_size = own.X.shape(0), all = own_size + nearest.lists().visitor().size;
    const auto within = [&](Index first, Index size) {  // one block
      return first >= 0 && first + size <= (first < own_size ? own_size : all);
    };
    require(within(first_row, tile.rows) && within(first_column, tile.columns),
            "tile out of range");
    return tile;
  }
};

template <class T>
struct PyKnownPairs {
  Array<T> X;
  KnownPairs<T> pairs;

  PyKnownPairs(Index first, Array<T> features, bool cosine)
      : X(std::move(features)), pairs(first, X.shape(1), X.data(), cosine) {
    require(X.ndim() == 2, "X must have two dimensions");
  }
  void tell(const Array<Column>& points, const Array<T>& features) {
    require(features.ndim() == 2 && features.shape(0) == points.size() &&
                features.shape(1) == X.shape(1),
            "a row of features for every point");
    pairs.tell({points.data(), points.data() + points.size()}, features.data());
  }
};

// ---- The active set, step by step ---------------------------------------------------------------

const char* name_of(Status status) {
  switch (status) {
    case Status::converged:
      return "converged";
    case Status::exhausted:
      return "exhausted";
    case Status::needs_candidates:
      return "needs candidates";
    default:
      return "running";
  }
}

template <class Iterate>
const char* iterated(const Iterate& iterate) {
  SignalPoll signals;
  const Poll poll = std::ref(signals);
  Status status;
  {
    const py::gil_scoped_release release;
    status = iterate(poll);
  }
  if (status == Status::interrupted) throw py::error_already_set();
  return name_of(status);
}

template <class T>
void py_refill(ActiveSet& active_set, const Array<Index>& rows, const Array<T>& S) {
  require(square_size(S) == active_set.size(), "S must have a row and a column for every point");
  const Indices points(rows.data(), rows.data() + rows.size());
  const RowSource<T> source{S.data(), active_set.size(), true};
  const py::gil_scoped_release release;
  active_set.refill(points, source, Refinement<T>{});
}

template <class T>
py::object py_refill_from_dots(ActiveSet& active_set, const Array<Index>& rows,
                               const Array<T>& dots, const PyFeatures<T>& features,
                               bool with_medians) {
  require(dots.ndim() == 2 && dots.shape(0) == rows.size() && dots.shape(1) == active_set.size(),
          "dots must have a row for every point asked for and a column for every point");
  const Indices points(rows.data(), rows.data() + rows.size());
  const RowSource<T> source{dots.data(), dots.shape(1), false, features.norm_data()};
  Array<T> medians(with_medians ? rows.size() : py::ssize_t{0});
  T* out = with_medians ? medians.mutable_data() : nullptr;
  {
    const py::gil_scoped_release release;
    active_set.refill(points, source, features.refinement(), out);
  }
  if (!with_medians) return py::none();
  return medians;
}

// Whether an array is of this type; then its values have the name.
template <class U>
bool take(const py::handle& array, const std::string& name, ActiveSet::Saved& saved) {
  if (!py::isinstance<Array<U>>(array)) return false;
  const auto values = array.cast<Array<U>>();
  saved[name] = std::vector<U>(values.data(), values.data() + values.size());
  return true;
}

template <class T>
void bind(py::module_& m, py::class_<ActiveSet>& active_set, const std::string& suffix) {
  m.def("solve", &py_solve<T>, py::arg("S").noconvert(), "active_set"_a);
  m.def("solve_dense", &py_solve_dense<T>, py::arg("S").noconvert(),
        py::arg("preference").noconvert(), "damping"_a, "max_iter"_a, "convergence_iter"_a,
        "seed"_a, "n_threads"_a);
  m.def("decode", &py_decode<T>, py::arg("S").noconvert(), py::arg("preference").noconvert(),
        "exemplars"_a, "seed"_a, "n_threads"_a, "active_set"_a = nullptr);
  m.def("cluster_many", &py_cluster_many<T>, py::arg("S").noconvert(),
        py::arg("preferences").noconvert(), "damping"_a, "max_iter"_a, "convergence_iter"_a,
        "seed"_a, "n_threads"_a);
  m.def("quantile", &py_quantile<T>, py::arg("S").noconvert(), "fraction"_a, "diagonal"_a,
        "n_threads"_a);
  m.def("column_medians", &py_column_medians<T>, py::arg("S").noconvert(), "n_threads"_a);

  m.def("centre", &py_centre<T>, py::arg("X").noconvert());
  m.def("distances_from_dots", &py_distances_from_dots<T>, py::arg("dots").noconvert(),
        py::arg("X").noconvert(), py::arg("norms").noconvert(), "n_threads"_a);

  py::class_<PyFeatures<T>>(m, ("Features" + suffix).c_str())
      .def(py::init<Array<T>, std::optional<Array<T>>, double>(), py::arg("X").noconvert(),
           "norms"_a, "unit"_a)
      .def("decode",
           [](const PyFeatures<T>& self, const ActiveSet& active_set,
              const Array<double>& preference, const Array<Index>& exemplars, Seed seed,
              int n_threads) {
             return decoded(self.exact, &active_set, preference, exemplars, jitter_for<T>(seed),
                            n_threads);
           })
      .def("similarities",
           [](const PyFeatures<T>& self, const Array<Index>& rows, const Array<Index>& columns) {
             require(rows.size() == columns.size(), "rows and columns differ in length");
             const Index n = rows.size(), look_ahead = 8;
             const Index *i = rows.data(), *k = columns.data();
             py::array_t<double> out(n);
             double* similarity = out.mutable_data();
             for (Index e = 0; e < n; ++e) {
               const Index next = std::min(e + look_ahead, n - 1);
               self.exact.prefetch(i[next]);
               self.exact.prefetch(k[next]);
               similarity[e] = self.exact(i[e], k[e]);
             }
             return out;
           });

  py::class_<PyNearest<T>>(m, ("Nearest" + suffix).c_str())
      .def(py::init<Array<Column>, std::optional<Array<T>>, Index>(), py::arg("points").noconvert(),
           "norms"_a, "want"_a)
      .def("offer", &PyNearest<T>::offer, py::arg("dots").noconvert(), "first_row"_a,
           "first_column"_a)
      .def("start_from_sample", &PyNearest<T>::start_from_sample, py::arg("dots").noconvert(),
           "first_row"_a, "rank"_a)
      .def(
          "open_rank_window",
          [](PyNearest<T>& self, T low, T high, Index expected) {
            self.nearest.open_rank_window(low, high, expected);
          },
          "low"_a, "high"_a, "expected"_a)
      .def(
          "values_at_ranks",
          [](PyNearest<T>& self, const std::vector<Index>& ranks) {
            return self.nearest.rank_window()->values_at(ranks);
          },
          "ranks"_a)
      .def_static("bytes_needed", &Nearest<T>::bytes_needed, "n"_a, "want"_a, "medians"_a)
      .def("open_medians", [](PyNearest<T>& self) { self.nearest.open_medians(); })
      .def(
          "medians",
          [](PyNearest<T>& self, T own, int n_threads) {
            std::vector<T> by_position(as_size(self.points.size()));
            {
              const py::gil_scoped_release release;
              self.nearest.medians(own, by_position.data(), n_threads);
            }
            Array<T> medians(self.points.size());
            for (std::size_t q = 0; q < by_position.size(); ++q)
              medians.mutable_data()[self.points.data()[q]] = by_position[q];
            return medians;
          },
          "own"_a, "n_threads"_a);

  py::class_<PyBlockNearest<T>>(m, ("BlockNearest" + suffix).c_str())
      .def(py::init<Array<T>, std::optional<Array<T>>, Array<Column>, Index, Index, Index, double,
                    Seed>(),
           py::arg("X").noconvert(), "norms"_a, py::arg("points").noconvert(), "most_visitors"_a,
           "n"_a, "want"_a, "unit"_a, "seed"_a)
      .def("receive", &PyBlockNearest<T>::receive, py::arg("X").noconvert(), "norms"_a,
           py::arg("points").noconvert(), py::arg("thresholds").noconvert())
      .def("offer", &PyBlockNearest<T>::offer, py::arg("dots").noconvert(), "first_row"_a,
           "first_column"_a)
      .def("start_from_sample", &PyBlockNearest<T>::start_from_sample, py::arg("dots").noconvert(),
           "first_row"_a, "rank"_a)
      .def("found", &PyBlockNearest<T>::found)
      .def("add", &PyBlockNearest<T>::add, py::arg("counts").noconvert(),
           py::arg("columns").noconvert(), py::arg("similarities").noconvert())
      .def("thresholds", &PyBlockNearest<T>::thresholds)
      .def("lists", &PyBlockNearest<T>::lists)
      .def(
          "open_rank_window",
          [](PyBlockNearest<T>& self, T low, T high, Index expected) {
            self.nearest.open_rank_window(low, high, expected);
          },
          "low"_a, "high"_a, "expected"_a)
      .def("rank_window_counts",
           [](PyBlockNearest<T>& self) {
             RankWindow<T>& window = *self.nearest.rank_window();
             return py::make_tuple(window.below(), to_array<Index>(window.bins()),
                                   to_array<T>(window.take_kept()));
           })
      .def("add_rank_window_counts",
           [](PyBlockNearest<T>& self, Index below, const Array<Index>& bins) {
             RankWindow<T>& window = *self.nearest.rank_window();
             window.add_counts(below, of_length(bins, static_cast<Index>(window.bins().size())));
           })
      .def(
          "values_at_ranks",
          [](PyBlockNearest<T>& self, const std::vector<Index>& ranks) {
            return self.nearest.rank_window()->values_at(ranks);
          },
          "ranks"_a);

  py::class_<PyKnownPairs<T>>(m, ("KnownPairs" + suffix).c_str())
      .def(py::init<Index, Array<T>, bool>(), "first"_a, py::arg("X").noconvert(), "cosine"_a)
      .def("tell", &PyKnownPairs<T>::tell, py::arg("points").noconvert(), py::arg("X").noconvert())
      .def("forget", [](PyKnownPairs<T>& self) { self.pairs.forget(); })
      .def(
          "assign",
          [](const PyKnownPairs<T>& self, const ActiveSet& active_set,
             const Array<Index>& exemplars, Seed seed, int n_threads) {
            const Range points = active_set.points();
            require(points.size() == self.X.shape(0), "another number of points");
            const Indices found(exemplars.data(), exemplars.data() + exemplars.size());
            Indices position(as_size(active_set.size()), -1), labels(as_size(points.size()));
            for (std::size_t c = 0; c < found.size(); ++c) {
              require(found[c] >= 0 && found[c] < active_set.size(), "exemplar out of range");
              position[as_size(found[c])] = static_cast<Index>(c);
            }
            {
              const py::gil_scoped_release release;
              active_set.assign(position, labels);
              assign(points, self.pairs, found, jitter_for<T>(seed), n_threads, labels);
            }
            return to_array<Index>(labels);
          },
          "active_set"_a, "exemplars"_a, "seed"_a, "n_threads"_a);

  m.def(
      "similarities_between",
      [](const Array<T>& X, const Array<T>& Y, const Array<Index>& rows,
         const Array<Index>& columns, bool cosine) {
        require(X.ndim() == 2 && Y.ndim() == 2 && X.shape(1) == Y.shape(1) &&
                    rows.size() == columns.size(),
                "not features of the same kind");
        KnownPairs<T> pairs(0, X.shape(1), X.data(), cosine);
        Array<double> out(rows.size());
        for (py::ssize_t e = 0; e < rows.size(); ++e) {
          const Index i = rows.data()[e], k = columns.data()[e];
          require(i >= 0 && i < X.shape(0) && k >= 0 && k < Y.shape(0), "point out of range");
          out.mutable_data()[e] = pairs.between(i, Y.data() + k * X.shape(1));
        }
        return out;
      },
      py::arg("X").noconvert(), py::arg("Y").noconvert(), "rows"_a, "columns"_a, "cosine"_a);

  active_set
      .def(
          "run_rows",
          [](ActiveSet& self, const PyKnownPairs<T>& pairs) {
            return iterated([&](const Poll& poll) { return self.run_rows(pairs.pairs, poll); });
          },
          "pairs"_a)
      .def(
          "bound_prominent",
          [](ActiveSet& self, Index count, const PyKnownPairs<T>& pairs) {
            self.bound_prominent(static_cast<Index>(self.prominent().size()) - count, pairs.pairs);
          },
          "count"_a, "pairs"_a)
      .def(
          "plan_refill",
          [](ActiveSet& self, const Array<Index>& rows, const Array<T>& dots,
             const std::optional<Array<T>>& norms, double unit, std::optional<T> own) -> py::tuple {
            require(
                dots.ndim() == 2 && dots.shape(0) == rows.size() && dots.shape(1) == self.size(),
                "dots must have a row for every point asked for and a column for every point");
            const T* squared = norms ? of_length(*norms, self.size()) : nullptr;
            const Indices points(rows.data(), rows.data() + rows.size());
            for (Index i : points)
              require(i >= self.points().first && i < self.points().last, "not one of the points");
            const RowSource<T> source{dots.data(), dots.shape(1), false, squared};
            Array<T> medians(own ? rows.size() : py::ssize_t{0});
            T* out = own ? medians.mutable_data() : nullptr;
            {
              const py::gil_scoped_release release;
              self.plan_refill(points, source, Refinement<T>{nullptr, squared, unit},
                               own.value_or(T(0)), out);
            }
            return py::make_tuple(to_array<Index>(self.planned_rows()),
                                  to_array<Column>(self.planned()), medians);
          },
          "rows"_a, py::arg("dots").noconvert(), "norms"_a, "unit"_a, "own"_a);

  active_set.def("refill", &py_refill<T>, "rows"_a, py::arg("S").noconvert())
      .def(
          "iterate",
          [](ActiveSet& self, Index iterations, const Array<T>& S) {
            require(square_size(S) == self.size(),
                    "S must have a row and a column for every point");
            return iterated(
                [&](const Poll& poll) { return self.iterate(S.data(), poll, iterations); });
          },
          "iterations"_a, py::arg("S").noconvert())
      .def(
          "iterate",
          [](ActiveSet& self, Index iterations, const PyFeatures<T>& features) {
            return iterated(
                [&](const Poll& poll) { return self.iterate(features.exact, poll, iterations); });
          },
          "iterations"_a, "features"_a)
      .def("refill_from_dots", &py_refill_from_dots<T>, "rows"_a, py::arg("dots").noconvert(),
           "features"_a, "with_medians"_a)
      .def("fill_from_nearest",
           [](ActiveSet& self, const PyNearest<T>& nearest, const PyFeatures<T>& features) {
             require(nearest.points.size() == self.size(), "another number of points");
             const py::gil_scoped_release release;
             self.fill_from_nearest(nearest.nearest, features.refinement());
           });
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.attr("sources") = EPRUNER_SOURCES;
#ifdef EPRUNER_SERIAL_BECAUSE
  m.attr("serial_because") = EPRUNER_SERIAL_BECAUSE;
#else
  m.attr("serial_because") = "";
#endif
  m.def("max_threads", &max_threads);
  py::class_<ActiveSet> active_set(m, "ActiveSet");
  active_set
      .def(py::init([](const Array<double>& preference, double damping, Index max_iter,
                       Index convergence_iter, Seed seed, bool single_precision, int n_threads,
                       Index first, std::optional<Index> n) {
             const Settings settings{damping, max_iter, convergence_iter, n_threads};
             const Range points{first, first + preference.size()};
             const Index all = n.value_or(points.last), block = ActiveSet::block_rows(all);
             require(first >= 0 && points.last <= all && first % block == 0 &&
                         (points.last == all || points.last % block == 0),
                     "points must be those of whole blocks");
             return ActiveSet(all, points, preference.data(), Jitter(seed, single_precision),
                              settings);
           }),
           py::arg("preference").noconvert(), "damping"_a, "max_iter"_a, "convergence_iter"_a,
           "seed"_a, "single_precision"_a, "n_threads"_a, "first"_a = 0, "n"_a = py::none())
      .def_static("block_rows", &ActiveSet::block_rows, "n"_a)
      .def(
          "fill_from_csr",
          [](ActiveSet& self, const Array<Index>& offsets, const Array<Column>& columns,
             const Array<double>& similarities) {
            const Index rows = self.points().size();
            require(offsets.size() == rows + 1 && columns.size() == similarities.size() &&
                        offsets.data()[rows] == columns.size(),
                    "not a compressed sparse matrix");
            const py::gil_scoped_release release;
            self.fill_from_csr(offsets.data(), columns.data(), similarities.data());
          },
          "offsets"_a, "columns"_a, "similarities"_a)
      .def(
          "fill_from_lists",
          [](ActiveSet& self, const Array<Index>& offsets, const Array<Column>& columns,
             const Array<double>& similarities, const Array<double>& bounds) {
            const Index rows = self.points().size();
            require(offsets.size() == rows + 1 && columns.size() == similarities.size() &&
                        offsets.data()[rows] == columns.size() && bounds.size() == rows,
                    "not a list for every point");
            const py::gil_scoped_release release;
            self.fill_from_lists(offsets.data(), columns.data(), similarities.data(),
                                 bounds.data());
          },
          "offsets"_a, py::arg("columns").noconvert(), py::arg("similarities").noconvert(),
          py::arg("bounds").noconvert())
      .def("run_rows",
           [](ActiveSet& self) {
             return iterated([&](const Poll& poll) { return self.run_rows(poll); });
           })
      .def("save",
           [](const ActiveSet& self) {
             require(!self.mid_iteration(), "some rows have not finished this iteration");
             py::dict saved;
             for (const auto& [name, values] : self.save())
               std::visit(
                   [&, &key = name](const auto& found) {
                     using U = typename std::decay_t<decltype(found)>::value_type;
                     saved[py::str(key)] = to_array<U>(found);
                   },
                   values);
             return saved;
           })
      .def(
          "restore",
          [](ActiveSet& self, const py::dict& arrays) {
            ActiveSet::Saved saved;
            for (const auto& [key, array] : arrays) {
              const auto name = key.cast<std::string>();
              if (!(take<double>(array, name, saved) || take<float>(array, name, saved) ||
                    take<Index>(array, name, saved) || take<Column>(array, name, saved) ||
                    take<std::uint8_t>(array, name, saved)))
                throw std::invalid_argument("no messages of such points: " + name);
            }
            self.restore(saved);
          },
          "saved"_a)
      .def("demands",
           [](const ActiveSet& self) {
             const auto demands = self.demands();
             Array<double> most(static_cast<py::ssize_t>(demands.size()));
             Array<Index> cost(most.size());
             for (std::size_t q = 0; q < demands.size(); ++q) {
               most.mutable_data()[q] = demands[q].most;
               cost.mutable_data()[q] = demands[q].cost;
             }
             return py::make_tuple(most, cost);
           })
      .def(
          "add_prominent",
          [](ActiveSet& self, const Array<double>& most, const Array<Index>& cost) {
            of_length(cost, most.size());
            std::vector<ProminentColumns::Demand> demands;
            for (py::ssize_t q = 0; q < most.size(); ++q)
              demands.push_back({most.data()[q], cost.data()[q]});
            const Index known = self.add_prominent(std::move(demands));
            const std::vector<Column>& columns = self.prominent();
            return to_array<Column>(std::vector<Column>(columns.begin() + known, columns.end()));
          },
          "most"_a, "cost"_a)
      .def("finish_refill",
           [](ActiveSet& self, const Array<double>& similarities) {
             self.finish_refill(of_length(similarities, static_cast<Index>(self.planned().size())));
           })
      .def(
          "add_support",
          [](ActiveSet& self, Index first, Array<double>& sums) {
            require(first >= 0 && first + sums.size() <= self.size(), "no such columns");
            self.add_support(first, first + sums.size(), sums.mutable_data());
          },
          "first"_a, py::arg("sums").noconvert())
      .def(
          "finish_rows",
          [](ActiveSet& self, const Array<double>& support) {
            return self.finish_rows(of_length(support, self.points().size())).shortest;
          },
          py::arg("support").noconvert())
      .def_property_readonly("total",
                             [](py::object self) {
                               ActiveSet& active_set = self.cast<ActiveSet&>();
                               return Array<double>(active_set.size(), active_set.total(), self);
                             })
      .def(
          "restart",
          [](ActiveSet& self, const Array<double>& preference, double damping) {
            self.restart(of_length(preference, self.points().size()), damping);
          },
          py::arg("preference").noconvert(), "damping"_a)
      .def(
          "continue_with",
          [](ActiveSet& self, const Array<double>& preference, double damping) {
            require(!self.mid_iteration(), "some rows have not finished this iteration");
            self.continue_with(of_length(preference, self.points().size()), damping);
          },
          py::arg("preference").noconvert(), "damping"_a)
      .def(
          "iterate",
          [](ActiveSet& self, Index iterations) {
            return iterated([&](const Poll& poll) { return self.iterate(poll, iterations); });
          },
          "iterations"_a)
      .def("rows_needing_candidates",
           [](const ActiveSet& self) { return to_array<Index>(self.rows_needing_candidates()); })
      .def("assign",
           [](const ActiveSet& self, const Array<Index>& position) {
             of_length(position, self.size());
             Indices labels(as_size(self.points().size()));
             self.assign(Indices(position.data(), position.data() + position.size()), labels);
             return to_array<Index>(labels);
           })
      .def_property_readonly(
          "is_exemplar",
          [](const ActiveSet& self) { return to_array<bool>(self.diagonal().is_exemplar); })
      .def_property_readonly("iteration", &ActiveSet::iteration)
      .def_property_readonly("n_candidates", &ActiveSet::n_candidates)
      .def_property_readonly("n_candidates_needed", &ActiveSet::n_candidates_needed)
      .def_property_readonly("longest_list", &ActiveSet::longest_list);
  bind<float>(m, active_set, "32");
  bind<double>(m, active_set, "64");
}
