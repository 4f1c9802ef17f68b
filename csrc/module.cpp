// The only file that knows Python.
#include <pybind11/numpy.h>
#include <omp.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <stdexcept>

#include "active.hpp"
#include "dense.hpp"

namespace py = pybind11;
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
    next_ = now + std::chrono::milliseconds(50);
    const py::gil_scoped_acquire gil;
    raised_ = PyErr_CheckSignals() != 0;
    return raised_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point next_ = Clock::now() + std::chrono::milliseconds(50);
  bool raised_ = false;
};

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

py::tuple to_python(const Outcome& outcome) {
  if (outcome.status == Status::interrupted) throw py::error_already_set();
  py::array_t<bool> is_exemplar(static_cast<py::ssize_t>(outcome.is_exemplar.size()));
  std::copy(outcome.is_exemplar.begin(), outcome.is_exemplar.end(), is_exemplar.mutable_data());
  return py::make_tuple(is_exemplar, outcome.n_iter, outcome.status == Status::converged);
}

template <class T>
py::tuple py_solve(const Array<T>& S, const Array<double>& preference, double damping,
                   Index max_iter, Index convergence_iter, std::uint64_t seed, int n_threads,
                   bool dense_only) {
  require(S.ndim() == 2 && S.shape(0) == S.shape(1), "S must be a square matrix");
  require(preference.ndim() == 1 && preference.shape(0) == S.shape(0),
          "preference must have one entry per point");
  require(S.shape(0) <= std::numeric_limits<Column>::max(), "more than 2^31 - 1 points");
  const Index n = S.shape(0);
  const T* similarities = S.data();
  const double* own = preference.data();
  const Settings settings{damping, max_iter, convergence_iter, n_threads};
  const Jitter jitter(seed, sizeof(T) == 4);
  Outcome outcome;
  SignalPoll signals;
  const Poll poll = std::ref(signals);
  {
    const py::gil_scoped_release release;
    outcome = dense_only
                  ? solve_dense(n, similarities, n, own, jitter, settings, poll)
                  : solve_matrix(n, similarities, n, own, jitter, settings, poll);
  }
  return to_python(outcome);
}

template <class T>
void bind(py::module_& m) {
  using namespace py::literals;
  m.def("solve", &py_solve<T>, py::arg("S").noconvert(), py::arg("preference").noconvert(),
        "damping"_a, "max_iter"_a, "convergence_iter"_a, "seed"_a, "n_threads"_a, "dense_only"_a);
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.def("max_threads", &omp_get_max_threads);
  bind<float>(m);
  bind<double>(m);
}
