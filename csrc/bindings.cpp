// The only file that knows Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <stdexcept>

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
        nearest(points.size(), want, norms ? of_length(*norms, points.size()) : nullptr,
                points.data()) {
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
          [](const PyNearest<T>& self, const std::vector<Index>& ranks) {
            return self.nearest.rank_window().values_at(ranks);
          },
          "ranks"_a)
      .def_static("bytes_needed", &Nearest<T>::bytes_needed, "n"_a, "want"_a, "medians"_a)
      .def("open_medians", [](PyNearest<T>& self) { self.nearest.open_medians(); })
      .def(
          "medians",
          [](PyNearest<T>& self, T own, int n_threads) {
            Array<T> medians(self.points.size());
            T* out = medians.mutable_data();
            {
              const py::gil_scoped_release release;
              self.nearest.medians(own, out, n_threads);
            }
            return medians;
          },
          "own"_a, "n_threads"_a);

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
                       Index convergence_iter, Seed seed, bool single_precision, int n_threads) {
             const Settings settings{damping, max_iter, convergence_iter, n_threads};
             return ActiveSet(preference.size(), preference.data(), Jitter(seed, single_precision),
                              settings);
           }),
           py::arg("preference").noconvert(), "damping"_a, "max_iter"_a, "convergence_iter"_a,
           "seed"_a, "single_precision"_a, "n_threads"_a)
      .def(
          "fill_from_csr",
          [](ActiveSet& self, const Array<Index>& offsets, const Array<Column>& columns,
             const Array<double>& similarities) {
            require(offsets.size() == self.size() + 1 && columns.size() == similarities.size() &&
                        offsets.data()[self.size()] == columns.size(),
                    "not a compressed sparse matrix");
            const py::gil_scoped_release release;
            self.fill_from_csr(offsets.data(), columns.data(), similarities.data());
          },
          "offsets"_a, "columns"_a, "similarities"_a)
      .def(
          "restart",
          [](ActiveSet& self, const Array<double>& preference, double damping) {
            self.restart(of_length(preference, self.size()), damping);
          },
          py::arg("preference").noconvert(), "damping"_a)
      .def(
          "continue_with",
          [](ActiveSet& self, const Array<double>& preference, double damping) {
            require(!self.mid_iteration(), "some rows have not finished this iteration");
            self.continue_with(of_length(preference, self.size()), damping);
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
             Indices labels(as_size(self.size()));
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
