// Affinity propagation on a CUDA device; NVRTC compiles this text at first use.
//
// The same text is plain C++ behind tests/cuda_shim.hpp, which is how it is tested without a card.
// So: no includes, dynamic shared memory only, every kernel argument one 64-bit word, and no block
// waits for another (an iteration is a few launches, which a CUDA graph repeats).
//
// Sums run in a fixed order and atomics touch integers only: the same bits from run to run.
// Compile without fused multiply-adds, as the CPU solvers are.
#ifndef EPRUNER_SHARED
#define EPRUNER_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

typedef long long Index;
typedef unsigned long long Bits;

// Problems one after the other: point i of problem p is number first[p] + i here. Every field is
// one 64-bit word; problems.py, solver.py and cluster.py fill these tables in this order.
struct Batch {
  Index points, problems;
  const Index* first;    // (problems + 1)
  const int* problem;    // (points)
  double* preference;    // (points) jittered
  double *a, *r;         // (points) diagonals of A and R
  double *total, *abar;  // (points) b, and the availability of pairs that hold no message
  int* streak;           // (points) iterations since the point last changed its role
  int* is_exemplar;      // (points)
  int *state, *t;        // (problems)
  int *unstable, *any, *needs_candidates;  // (problems) gathered during an iteration
  double *decay, *abar_max;                // (problems) damping^t; largest abar
  Bits* abar_next;                         // (problems) bits of the smallest -abar so far
  double damping;
  Index max_iter, convergence_iter;
  Index has_jitter;  // 0 or 1
  Bits seed;
};

// Lists of similar points, in a pool. A listed entry without messages has R = A = -inf, which no
// maximum or sum notices.
struct ActiveSet {
  Index capacity;
  Bits* used;
  double *s, *r, *a;
  int* column;                // as a number in the batch
  Index* start;               // (points)
  int *listed, *active;       // (points)
  double *unlisted, *mu;      // (points) bound on everything unlisted
  double* below;              // (points) what has this similarity or more, before jitter, is listed
  int* want;                  // (points) so many of what is not listed have to be, if not 0
  int* pending;               // (points) 1: waits for candidates
  const Index* column_first;  // (points + 1) the same entries by column, rows ascending
  const int* column_entry;    // positions in the pool
  // Bursts: unlisted pairs with R > 0 add to the column sums in one read of their row.
  Index most_bursts;          // of a row, before it asks for candidates instead
  int *bursts, *burst_at;     // (points) how many so far, and the iteration of the last
  int* problem_burst_at;      // (problems) the same of any of its rows
  double* burst_support;      // (kBands, points) sums over bands of a problem's rows
};

// Where similarities come from: a matrix per problem, or features (one problem) and tiles of
// their products.
struct Source {
  const Bits* matrix;    // (problems) addresses of (n, n)
  const void* features;  // (n, d) centred
  Index d;
  const void* norms;  // (n) squared
  double error;       // a tile's similarity is off by at most error * (norms[i] + largest norm)
  double largest_norm;
};

// Exemplars of all problems, problem after problem, and the clusters' members.
struct Clusters {
  const Index* first;         // (problems + 1) into slots
  const int* exemplar;        // (slots) as a number in the batch
  const int* slot;            // (points) -1, or the slot whose exemplar the point is
  int* label;                 // (points) slot, or -1
  const Index* member_first;  // (slots + 1)
  const int* member;          // points by slot, ascending
  double* support;            // (points)
  int* best;                  // (slots)
  double* net;                // (problems)
};

enum State { kRunning, kResumed, kNeedsCandidates, kConverged, kExhausted };

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kSegments = 8;  // a column of a small problem is summed in this many parts
constexpr int kFirstWant = 16;
constexpr int kBands = 16;  // in which the rows that burst are summed

// ---- Numbers ------------------------------------------------------------------------------------

__device__ inline double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

template <class T>
struct Number;
template <>
struct Number<float> {
  typedef unsigned Key;
  static constexpr double relative = 0x1p-23, absolute = 0x1p-120;
  static constexpr float largest = 3.40282346638528859812e+38f, close = 0x1.6a09e6p-12f;
  // Keys compare as the numbers do.
  static __device__ Key key(float x) {
    const Key bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  static __device__ float number(Key key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
  }
};
template <>
struct Number<double> {
  typedef Bits Key;
  static constexpr double relative = 0x1p-36, absolute = 0x1p-1000;
  static constexpr double largest = 1.79769313486231570815e+308, close = 0x1p-26;
  static __device__ Key key(double x) {
    const Key bits = static_cast<Key>(__double_as_longlong(x));
    return bits >> 63 ? ~bits : bits | 1ull << 63;
  }
  static __device__ double number(Key key) {
    return __longlong_as_double(static_cast<Index>(key >> 63 ? key & ~(1ull << 63) : ~key));
  }
};

__device__ inline Bits mix(Bits h) {
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ull;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBull;
  return h ^ (h >> 31);
}

__device__ inline unsigned mix_32(unsigned h) {
  h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

// The jitter of jitter.py: T is the precision of the similarities.
template <class T>
__device__ double jittered(double s, Index row, Index column, const Batch& b) {
  if (!b.has_jitter || !(fabs(s) < infinity())) return s;
  constexpr Bits golden = 0x9E3779B97F4A7C15ull;
  const Bits key = mix((static_cast<Bits>(row) + b.seed) * golden + golden);
  const unsigned h =
      mix_32(static_cast<unsigned>(key >> 32) + static_cast<unsigned>(column) * 0x9E3779B9u);
  const double u = static_cast<double>(static_cast<int>(h)) * 0x1p-31;
  return s + (Number<T>::relative * fabs(s) + Number<T>::absolute) * u;
}

// At least the jittered value of anything that is at most s.
template <class T>
__device__ double ceiling(double s) {
  return fabs(s) < infinity() ? s + (Number<T>::relative * fabs(s) + Number<T>::absolute) : s;
}

template <class T>
__device__ T positive(T x) {
  return x > T(0) ? x : T(0);
}

template <class T>
__device__ T damped_availability(T damping, T b, T r, T a) {
  const T fresh = b - positive(r);
  return damping * a + (T(1) - damping) * (fresh < T(0) ? fresh : T(0));
}

// The two largest of a row, counted with multiplicity.
template <class T>
struct Top2 {
  T first = static_cast<T>(-infinity()), second = static_cast<T>(-infinity());
  __device__ void add(T x) {
    second = x > first ? first : (x > second ? x : second);
    first = x > first ? x : first;
  }
  __device__ void add(Top2 other) {
    add(other.first);
    add(other.second);
  }
};

template <class T>
__device__ T damped_responsibility(T damping, Top2<T> top, T s, T a, T r) {
  const T rival = a + s == top.first ? top.second : top.first;
  return damping * r + (T(1) - damping) * (s - rival);
}

// ---- Threads together ---------------------------------------------------------------------------

__device__ inline Index thread_in_grid() {
  return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline Index threads_in_grid() { return static_cast<Index>(gridDim.x) * blockDim.x; }
__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

template <class T>
__device__ Top2<T> warp_top2(Top2<T> top) {
  for (int o = kWarp / 2; o > 0; o /= 2) {
    Top2<T> other;
    other.first = __shfl_xor_sync(kAll, top.first, o);
    other.second = __shfl_xor_sync(kAll, top.second, o);
    top.add(other);
  }
  return top;
}

template <class T>
__device__ T warp_sum(T x) {
  for (int o = kWarp / 2; o > 0; o /= 2) x += __shfl_xor_sync(kAll, x, o);
  return x;
}

template <class T>
__device__ T warp_max(T x) {
  for (int o = kWarp / 2; o > 0; o /= 2) {
    const T other = __shfl_xor_sync(kAll, x, o);
    x = other > x ? other : x;
  }
  return x;
}

// All threads of the block get the answer; `scratch` holds two values a warp.
template <class T>
__device__ Top2<T> block_top2(Top2<T> top, T* scratch) {
  top = warp_top2(top);
  __syncthreads();  // the last reader of scratch is through
  if (lane() == 0) {
    scratch[threadIdx.x / kWarp * 2] = top.first;
    scratch[threadIdx.x / kWarp * 2 + 1] = top.second;
  }
  __syncthreads();
  Top2<T> all;
  for (unsigned q = 0; q < blockDim.x / kWarp * 2; ++q) all.add(scratch[q]);
  return all;
}

__device__ inline int block_sum(int x, int* scratch) {
  __syncthreads();
  if (threadIdx.x == 0) *scratch = 0;
  __syncthreads();
  if (x != 0) atomicAdd(scratch, x);
  __syncthreads();
  return *scratch;
}

// The rank-th largest of value(0), ..., value(n-1), rank counted from 1: four bits of it a pass.
template <class T, class Value>
__device__ T kth_largest(const Value& value, Index n, Index rank, int* counts) {
  typedef typename Number<T>::Key Key;
  Key found = 0;
  for (int shift = 8 * sizeof(Key) - 4; shift >= 0; shift -= 4) {
    int above[15] = {};
#pragma unroll 4
    for (Index k = threadIdx.x; k < n; k += blockDim.x) {
      const Key key = Number<T>::key(value(k));
      for (int j = 0; j < 15; ++j) above[j] += key >= (found | static_cast<Key>(j + 1) << shift);
    }
    __syncthreads();
    if (threadIdx.x < 15) counts[threadIdx.x] = 0;
    __syncthreads();
    for (int j = 0; j < 15; ++j)
      if (above[j] != 0) atomicAdd(counts + j, above[j]);
    __syncthreads();
    int digit = 0;
    for (int j = 0; j < 15; ++j) digit += counts[j] >= rank;
    found |= static_cast<Key>(digit) << shift;
  }
  return Number<T>::number(found);
}

// ---- Rows of similarities -----------------------------------------------------------------------

// value(k, slot): as stored, where `slot` is k's place in a tile. exact(k): without the tile's
// error.
template <class T>
struct MatrixRow {
  const T* x;
  double error = 0;
  __device__ MatrixRow(const Source* source, Index p, Index n, Index self, Index, Index)
      : x(reinterpret_cast<const T*>(source->matrix[p]) + self * n) {}
  __device__ T value(Index k, Index) const { return x[k]; }
  __device__ double exact(Index k) const { return static_cast<double>(x[k]); }
};

template <class T>
struct ProductRow {
  const T *x, *norms, *product;
  Index d, self;
  double error;
  __device__ ProductRow(const Source* source, Index, Index, Index i, Index tile, Index tile_row)
      : x(static_cast<const T*>(source->features)),
        norms(static_cast<const T*>(source->norms)),
        product(reinterpret_cast<const T*>(tile) + tile_row),
        d(source->d),
        self(i),
        error(source->error * (static_cast<double>(norms[i]) + source->largest_norm)) {}
  __device__ T value(Index k, Index slot) const {
    const T v = T(2) * product[slot] - norms[self] - norms[k];
    return k != self && v < T(0) ? v : T(0);
  }
  __device__ double exact(Index k) const {
    double sum = 0;
    for (Index j = 0; j < d; ++j) {
      const double gap = static_cast<double>(x[self * d + j]) - static_cast<double>(x[k * d + j]);
      sum += gap * gap;
    }
    return -sum;
  }
};

// S = -||x_i - x_k||² from products P = X X' (n, n) of centred X (n, d); pairs that are close
// compared with their norms by direct difference. Symmetric to the bit.
template <class T>
__device__ void distances(const T* product, const T* x, Index n, Index d, T* S) {
  for (Index e = thread_in_grid(); e < n * n; e += threads_in_grid()) {
    const Index i = e / n, k = e % n;
    const Index low = i < k ? i : k, high = i < k ? k : i;
    const T near = product[low * n + low], far = product[high * n + high];
    T v = T(2) * product[low * n + high] - near - far;
    if (!(v < T(0))) v = T(0);
    if (i == k) {
      v = T(0);
    } else if (-v < (near + far) * Number<T>::close) {
      double sum = 0;
      for (Index j = 0; j < d; ++j) {
        const double gap =
            static_cast<double>(x[low * d + j]) - static_cast<double>(x[high * d + j]);
        sum += gap * gap;
      }
      v = static_cast<T>(-sum);
    }
    S[e] = v;
  }
}

// Median of each row, a block a row, as NumPy's: the mean of the middle two where n is even.
template <class T, class Row>
__device__ void medians(const Batch* b, const Source* source, Index begin, Index tile, T* median) {
  EPRUNER_SHARED(shared);
  int* counts = reinterpret_cast<int*>(shared);
  T* scratch = reinterpret_cast<T*>(shared + 64);
  const Index i = begin + blockIdx.x, p = b->problem[i];
  const Index first = b->first[p], n = b->first[p + 1] - first;
  const Row row(source, p, n, i - first, tile, static_cast<Index>(blockIdx.x) * n);
  const auto value = [&](Index k) { return row.value(k, k); };
  const T high = kth_largest<T>(value, n, (n + 1) / 2, counts);
  int reach = 0;
  Top2<T> below;
  for (Index k = threadIdx.x; k < n; k += blockDim.x) {
    const T v = value(k);
    reach += v >= high;
    if (v < high) below.add(v);
  }
  reach = block_sum(reach, counts);
  below = block_top2(below, scratch);
  const T low = n % 2 != 0 || reach > n / 2 ? high : below.first;
  if (threadIdx.x == 0) median[i] = (low + high) / T(2);
}

// What is wrong with each problem: 1 holds NaN or +inf, 2 similarities differ, 4 preferences
// differ, 8 a preference is not finite. A warp a row.
template <class T>
__device__ void inspect(const Batch* b, const Source* source, const T* preference, int* flags) {
  const Index i = thread_in_grid() / kWarp;
  if (i >= b->points) return;
  const Index p = b->problem[i], first = b->first[p], n = b->first[p + 1] - first;
  const T* S = reinterpret_cast<const T*>(source->matrix[p]);
  const T link = S[n > 1 ? 1 : 0];
  int found = 0;
  for (Index k = lane(); k < n; k += kWarp) {
    const T x = S[(i - first) * n + k];
    found |= x <= Number<T>::largest ? 0 : 1;
    found |= k == i - first || x == link ? 0 : 2;
  }
  found |= preference[i] == preference[first] ? 0 : 4;
  found |= fabs(static_cast<double>(preference[i])) < infinity() ? 0 : 8;
  if (found != 0 && (flags[p] | found) != flags[p]) atomicOr(flags + p, found);
}

// Own entries at the start.
template <class T>
__device__ void begin(const Batch* b, const T* preference) {
  for (Index i = thread_in_grid(); i < b->points; i += threads_in_grid()) {
    const Index own = i - b->first[b->problem[i]];
    b->preference[i] = jittered<T>(static_cast<double>(preference[i]), own, own, *b);
    b->total[i] = infinity();
  }
}

// ---- Small problems: a block each, everything in shared memory, one launch ----------------------

template <class T>
__device__ void small(const Batch* b, const Source* source, const int* which) {
  EPRUNER_SHARED(shared);
  const Index p = which[blockIdx.x], first = b->first[p];
  const int n = static_cast<int>(b->first[p + 1] - first), threads = blockDim.x;
  double* s = reinterpret_cast<double*>(shared);
  double *r = s + n * n, *a = r + n * n, *total = a + n * n, *partial = total + n;
  int* streak = reinterpret_cast<int*>(partial + kSegments * n);
  int* is_exemplar = streak + n;
  const T* S = reinterpret_cast<const T*>(source->matrix[p]);
  const double damping = b->damping, renew = 1 - damping;
  for (int e = threadIdx.x; e < n * n; e += threads) {
    const int i = e / n, k = e % n;
    s[e] = i == k ? b->preference[first + i] : jittered<T>(static_cast<double>(S[e]), i, k, *b);
    r[e] = a[e] = 0;
  }
  for (int k = threadIdx.x; k < n; k += threads) streak[k] = is_exemplar[k] = 0;
  __syncthreads();

  Index t = 0;
  int converged = 0;
  while (t < b->max_iter && !converged) {
    for (int i = threadIdx.x / kWarp; i < n; i += threads / kWarp) {
      double *S_ = s + i * n, *R = r + i * n, *A = a + i * n;
      Top2<double> top;
      for (int k = lane(); k < n; k += kWarp) {
        if (t > 0 && k != i) A[k] = damped_availability(damping, total[k], R[k], A[k]);
        top.add(A[k] + S_[k]);
      }
      top = warp_top2(top);
      for (int k = lane(); k < n; k += kWarp)
        R[k] = damped_responsibility(damping, top, S_[k], A[k], R[k]);
    }
    __syncthreads();
    for (int q = threadIdx.x; q < kSegments * n; q += threads) {
      const int part = q / n, k = q % n;
      double sum = 0;
      for (int i = part * n / kSegments; i < (part + 1) * n / kSegments; ++i)
        if (i != k) sum += positive(r[i * n + k]);
      partial[q] = sum;
    }
    __syncthreads();
    int stable = 1, any = 0;
    for (int k = threadIdx.x; k < n; k += threads) {
      double support = 0;
      for (int part = 0; part < kSegments; ++part) support += partial[part * n + k];
      const int own = k * n + k;
      total[k] = support + r[own];
      a[own] = damping * a[own] + renew * support;
      const int now = a[own] + r[own] > 0;
      streak[k] = now == is_exemplar[k] ? streak[k] + 1 : 1;
      is_exemplar[k] = now;
      any |= now;
      stable &= streak[k] >= b->convergence_iter;
    }
    stable = __syncthreads_and(stable);
    any = __syncthreads_or(any);
    converged = any && stable && t >= b->convergence_iter;
    ++t;
  }
  for (int k = threadIdx.x; k < n; k += threads) b->is_exemplar[first + k] = is_exemplar[k];
  if (threadIdx.x == 0) {
    b->t[p] = static_cast<int>(t);
    b->state[p] = converged ? kConverged : kExhausted;
  }
}

// ---- The end of an iteration, for active sets and dense passes ----------------------------------

__device__ inline bool at_work(const Batch* b, Index p) {
  return b->state[p] <= kResumed && b->needs_candidates[p] == 0;
}

// b[k], A[k,k], whether k is an exemplar, and the availability of pairs without messages next time.
__device__ inline void finish_point(const Batch* b, Index p, Index k, double support) {
  const double damping = b->damping, renew = 1 - damping;
  const double total = support + b->r[k];
  const double a = damping * b->a[k] + renew * support;
  const int now = a + b->r[k] > 0;
  const int streak = now == b->is_exemplar[k] ? b->streak[k] + 1 : 1;
  b->total[k] = total;
  b->a[k] = a;
  b->is_exemplar[k] = now;
  b->streak[k] = streak;
  if (streak < b->convergence_iter) b->unstable[p] = 1;  // all who write, write the same
  if (now) b->any[p] = 1;
  const double abar = damping * b->abar[k] + renew * (total < 0 ? total : 0);
  b->abar[k] = abar;
  const Bits size = static_cast<Bits>(__double_as_longlong(fabs(abar)));  // abar <= 0
  if (size < b->abar_next[p]) atomicMin(b->abar_next + p, size);
}

// The stop rule, a thread a problem.
extern "C" __global__ void conclude(const Batch* b) {
  const Index p = thread_in_grid();
  if (p >= b->problems || b->state[p] > kResumed) return;
  if (b->needs_candidates[p] != 0) {
    b->state[p] = kNeedsCandidates;
    return;
  }
  const int t = b->t[p];
  const bool stop = b->any[p] && !b->unstable[p] && t >= b->convergence_iter;
  b->state[p] = stop ? kConverged : t + 1 >= b->max_iter ? kExhausted : kRunning;
  b->t[p] = t + 1;
  b->any[p] = b->unstable[p] = 0;
  b->decay[p] *= b->damping;
  b->abar_max[p] = -__longlong_as_double(static_cast<Index>(b->abar_next[p]));
  b->abar_next[p] = ~0ull;
}

// ---- The active set ----------------------------------------------------------------------------
//
// A pair that never was its row's maximum has R = (1 - damping^t) S - mu. If R never exceeded
// max(0, b) of its column either, A = abar. Pairs need to hold messages only from then on. Unlisted
// pairs hold none; of the listed ones hold them all down to the last that was a row's maximum, had
// R > 0, or R > max(0, b) before it was listed.

// Give each of these rows its next candidates, a block a row. refilled[q] = 0: the pool is full.
template <class T, class Row>
__device__ void select(const Batch* b, const ActiveSet* g, const Source* source, const int* rows,
                       Index tile, int* refilled) {
  EPRUNER_SHARED(shared);
  int* counts = reinterpret_cast<int*>(shared);
  Bits* place = reinterpret_cast<Bits*>(shared + 64);
  T* lanes = reinterpret_cast<T*>(shared + 80);
  const Index i = rows[blockIdx.x], p = b->problem[i], first = b->first[p];
  const Index n = b->first[p + 1] - first, self = i - first;
  const Row row(source, p, n, self, tile, static_cast<Index>(blockIdx.x) * n);
  const T lowest = -Number<T>::largest, none = static_cast<T>(-infinity());
  const auto value = [&](Index k) { return k == self ? none : row.value(k, k); };
  const int listed = g->listed[i];
  const Index old = g->start[i];

  // At least `target` and not many more entries reach `low`; those listed now are among them, or
  // were when the products of this row were last rounded.
  const int want = g->want[i] > kFirstWant ? g->want[i] : kFirstWant;
  const Index target = listed + (listed > want ? listed : want);
  T low = lowest;
  if (target < n - 1) {
    if (4 * target <= blockDim.x) {
      T best = none;
#pragma unroll 4
      for (Index k = threadIdx.x; k < n; k += blockDim.x) {
        const T v = value(k);
        best = v > best ? v : best;
      }
      lanes[threadIdx.x] = best;
      __syncthreads();
      low = kth_largest<T>([&](Index k) { return lanes[k]; }, blockDim.x, target, counts);
    } else {
      low = kth_largest<T>(value, n, target, counts);
    }
    if (low < lowest) low = lowest;
  }
  int reach = 0;
#pragma unroll 4
  for (Index k = threadIdx.x; k < n; k += blockDim.x) reach += value(k) >= low;
  const Index room = listed + block_sum(reach, counts);
  if (threadIdx.x == 0) {
    *place = atomicAdd(g->used, static_cast<Bits>(room));
    counts[1] = 0;
    refilled[blockIdx.x] = static_cast<Index>(*place) + room <= g->capacity;
  }
  __syncthreads();
  const Index start = static_cast<Index>(*place);
  if (start + room > g->capacity) return;

  for (Index e = threadIdx.x; e < listed; e += blockDim.x) {
    g->s[start + e] = g->s[old + e];
    g->r[start + e] = g->r[old + e];
    g->a[start + e] = g->a[old + e];
    g->column[start + e] = g->column[old + e];
  }
  // Collected in any order in the place of their messages, then put in descending order.
  const Index fresh = start + listed;
  for (Index k = threadIdx.x; k < n; k += blockDim.x) {
    if (!(value(k) >= low)) continue;
    bool known = false;
    for (Index e = 0; e < listed && !known; ++e) known = g->column[old + e] == first + k;
    if (known) continue;
    const Index e = fresh + atomicAdd(counts + 1, 1);
    g->a[e] = jittered<T>(row.exact(k), self, k, *b);
    g->r[e] = static_cast<double>(k);
  }
  __syncthreads();
  const int found = counts[1];
  for (Index e = threadIdx.x; e < found; e += blockDim.x) {
    const double s = g->a[fresh + e], k = g->r[fresh + e];
    Index rank = 0;
    for (Index f = 0; f < found; ++f) {
      const double other = g->a[fresh + f];
      rank += other > s || (other == s && g->r[fresh + f] < k);
    }
    g->s[fresh + rank] = s;
    g->column[fresh + rank] = static_cast<int>(first + static_cast<Index>(k));
  }
  __syncthreads();
  for (Index e = threadIdx.x; e < found; e += blockDim.x)
    g->r[fresh + e] = g->a[fresh + e] = -infinity();
  if (threadIdx.x == 0) {
    g->start[i] = start;
    g->listed[i] = listed + found;
    g->want[i] = 0;
    g->below[i] = static_cast<double>(low);
    g->unlisted[i] = low == lowest ? -infinity() : ceiling<T>(static_cast<double>(low) + row.error);
  }
}

// R of unlisted pairs, found in a read of the row: what is not listed has a similarity in
// [lowest, below).
template <class T>
struct UnlistedRow {
  const T* x;
  Index self, n;
  double below;
  __device__ UnlistedRow(const Batch* b, const ActiveSet* g, const Source* source, Index i)
      : x(reinterpret_cast<const T*>(source->matrix[b->problem[i]])),
        self(i - b->first[b->problem[i]]),
        n(b->first[b->problem[i] + 1] - b->first[b->problem[i]]),
        below(g->below[i]) {
    x += self * n;
  }
  __device__ bool has(Index k) const {
    return k != self && x[k] >= -Number<T>::largest && static_cast<double>(x[k]) < below;
  }
  __device__ double responsibility(Index k, double grown, double mu, const Batch& b) const {
    return grown * jittered<T>(static_cast<double>(x[k]), self, k, b) - mu;
  }
};

// Which rows have to list pairs that had R > max(0, b) in the last iteration's burst: a warp a row.
template <class T>
__device__ void unbalanced(const Batch* b, const ActiveSet* g, const Source* source) {
  const Index i = thread_in_grid() / kWarp;
  if (i >= b->points) return;
  const Index p = b->problem[i];
  if (b->state[p] != kRunning || g->burst_at[i] < 0 || g->burst_at[i] != b->t[p] - 1) return;
  const UnlistedRow<T> row(b, g, source, i);
  const double *total = b->total + b->first[p], grown = 1 - b->decay[p], mu = g->mu[i];
  double least = infinity();
  for (Index k = lane(); k < row.n; k += kWarp)
    if (row.has(k) && row.responsibility(k, grown, mu, *b) > positive(total[k]) &&
        static_cast<double>(row.x[k]) < least)
      least = static_cast<double>(row.x[k]);
  least = -warp_max(-least);
  if (least == infinity()) return;
  int count = 0;
  for (Index k = lane(); k < row.n; k += kWarp)
    count += row.has(k) && static_cast<double>(row.x[k]) >= least;
  count = warp_sum(count);
  if (lane() != 0) return;
  g->want[i] = count;
  g->pending[i] = 1;
  b->needs_candidates[p] = 1;  // all who write, write the same
}

// Column sums over the unlisted pairs of the rows that burst: a thread a column and band of rows.
template <class T>
__device__ void burst(const Batch* b, const ActiveSet* g, const Source* source) {
  const Index band = thread_in_grid() / b->points, k = thread_in_grid() % b->points;
  if (band >= kBands) return;
  const Index p = b->problem[k], first = b->first[p], n = b->first[p + 1] - first;
  if (!at_work(b, p) || g->problem_burst_at[p] != b->t[p]) return;
  const double grown = 1 - b->decay[p] * b->damping;
  double support = 0;
  for (Index i = first + band * n / kBands; i < first + (band + 1) * n / kBands; ++i) {
    if (g->burst_at[i] != b->t[p]) continue;
    const UnlistedRow<T> row(b, g, source, i);
    if (row.has(k - first)) support += positive(row.responsibility(k - first, grown, g->mu[i], *b));
  }
  g->burst_support[band * b->points + k] = support;
}

// A warp a row: listed availabilities, what has to become active, responsibilities.
extern "C" __global__ void active_rows(const Batch* b, const ActiveSet* g) {
  const Index i = thread_in_grid() / kWarp;
  if (i >= b->points) return;
  const Index p = b->problem[i];
  const bool resumed = b->state[p] == kResumed;
  if (b->state[p] > kResumed || (resumed && !g->pending[i])) return;
  const double damping = b->damping, renew = 1 - damping;
  const double decay = b->decay[p], abar_max = b->abar_max[p];
  const double mu = g->mu[i], grown = 1 - decay * damping;
  const int listed = g->listed[i];
  int active = g->active[i];
  double *s = g->s + g->start[i], *r = g->r + g->start[i], *a = g->a + g->start[i];
  const int* column = g->column + g->start[i];
  // Read by all lanes before the first of them writes, which is after a reduction.
  const bool lacks_unbalanced = !resumed && g->pending[i];
  const bool may_burst = g->bursts[i] < g->most_bursts;

  Top2<double> top;
  for (int e = lane(); e < active; e += kWarp) {
    if (!resumed) a[e] = damped_availability(damping, b->total[column[e]], r[e], a[e]);
    top.add(a[e] + s[e]);
  }
  top = warp_top2(top);
  const double own = b->a[i] + b->preference[i];
  top.add(own);
  // Whether nothing as similar as x or less can be the row's maximum or have R > 0 now.
  const auto harmless = [&](double x) {
    return x + abar_max <= top.second && grown * x <= damping * mu + renew * top.first;
  };
  Top2<double> activated;
  for (int begin = active; begin < listed; begin += kWarp) {
    const int e = begin + lane();
    const double before = e < listed ? (1 - decay) * s[e] - mu : 0;
    const bool activate = e < listed && (before > 0 || !harmless(s[e]));
    if (activate) {
      const double total = b->total[column[e]], balance = total - positive(before);
      r[e] = before;
      a[e] = b->abar[column[e]] + renew * ((balance < 0 ? balance : 0) - (total < 0 ? total : 0));
      activated.add(a[e] + s[e]);
      active = e + 1;
    }
    if (!__any_sync(kAll, activate)) break;
  }
  active = warp_max(active);
  top.add(warp_top2(activated));
  const double unlisted = g->unlisted[i];
  const bool lacks = active == listed && unlisted > -infinity() && !harmless(unlisted);
  const bool bursts =
      lacks && !lacks_unbalanced && may_burst && unlisted + abar_max <= top.second;
  const bool pending = lacks_unbalanced || (lacks && !bursts);
  if (lane() == 0) {
    g->active[i] = active;
    g->pending[i] = pending;
    if (pending) b->needs_candidates[p] = 1;  // all who write, write the same
    if (bursts) {
      ++g->bursts[i];
      g->burst_at[i] = g->problem_burst_at[p] = b->t[p];
    }
  }
  if (pending) return;
  for (int e = lane(); e < active; e += kWarp)
    r[e] = damped_responsibility(damping, top, s[e], a[e], r[e]);
  if (lane() == 0) {
    g->mu[i] = damping * mu + renew * top.first;
    b->r[i] = damped_responsibility(damping, top, b->preference[i], b->a[i], b->r[i]);
  }
}

// A warp a column: its listed entries in the order of their rows, then what burst.
extern "C" __global__ void active_columns(const Batch* b, const ActiveSet* g) {
  const Index k = thread_in_grid() / kWarp;
  if (k >= b->points) return;
  const Index p = b->problem[k];
  if (!at_work(b, p)) return;
  double support = 0;
  for (Index e = g->column_first[k] + lane(); e < g->column_first[k + 1]; e += kWarp)
    support += positive(g->r[g->column_entry[e]]);
  support = warp_sum(support);
  if (lane() != 0) return;
  if (g->problem_burst_at[p] == b->t[p])
    for (int band = 0; band < kBands; ++band) support += g->burst_support[band * b->points + k];
  finish_point(b, p, k, support);
}

// ---- Dense passes: every pair holds messages, one pass over memory an iteration -----------------

// s: S with its jitter, in T.
template <class T>
__device__ void dense_begin(const Batch* b, const Source* source, T* s) {
  const Index n = b->points;
  const T* S = reinterpret_cast<const T*>(source->matrix[0]);
  for (Index e = thread_in_grid(); e < n * n; e += threads_in_grid())
    s[e] = static_cast<T>(jittered<T>(static_cast<double>(S[e]), e / n, e % n, *b));
}

// A block a fixed band of rows; thread j owns columns j, j + threads, ... of the band's sums.
template <class T>
__device__ void dense_rows(const Batch* b, const T* s, T* r, T* a, double* partial) {
  EPRUNER_SHARED(shared);
  if (b->state[0] > kResumed) return;
  T* scratch = reinterpret_cast<T*>(shared);
  const Index n = b->points, bands = gridDim.x, band = blockIdx.x;
  const T damping = static_cast<T>(b->damping);
  double* support = partial + band * n;
  for (Index k = threadIdx.x; k < n; k += blockDim.x) support[k] = 0;
  for (Index i = band * n / bands; i < (band + 1) * n / bands; ++i) {
    const T* S = s + i * n;
    T *R = r + i * n, *A = a + i * n;
    const T own = static_cast<T>(b->a[i] + b->preference[i]);
    Top2<T> top;
#pragma unroll 4
    for (Index k = threadIdx.x; k < n; k += blockDim.x) {
      const T total = static_cast<T>(b->total[k]);
      const T fresh = damped_availability(damping, total, R[k], A[k]);
      A[k] = fresh;
      top.add(k == i ? own : fresh + S[k]);
    }
    top = block_top2(top, scratch);
#pragma unroll 4
    for (Index k = threadIdx.x; k < n; k += blockDim.x) {
      const T fresh = damped_responsibility(damping, top, S[k], A[k], R[k]);
      R[k] = fresh;
      if (fresh > T(0) && k != i) support[k] += static_cast<double>(fresh);
    }
    if (threadIdx.x == 0) {  // the own entry, in double
      const double rival = static_cast<double>(own == top.first ? top.second : top.first);
      b->r[i] = b->damping * b->r[i] + (1 - b->damping) * (b->preference[i] - rival);
    }
  }
}

extern "C" __global__ void dense_columns(const Batch* b, const double* partial, Index bands) {
  if (!at_work(b, 0)) return;
  for (Index k = thread_in_grid(); k < b->points; k += threads_in_grid()) {
    double support = 0;
    for (Index band = 0; band < bands; ++band) support += partial[band * b->points + k];
    finish_point(b, 0, k, support);
  }
}

// ---- From exemplars to clusters -----------------------------------------------------------------

// The best exemplar of rows begin, begin + 1, ..., a warp a row; jitter decides between equals.
template <class T, class Row>
__device__ void assign(const Batch* b, const Clusters* c, const Source* source, Index begin,
                       Index count, Index tile) {
  const Index q = thread_in_grid() / kWarp, i = begin + q;
  if (q >= count) return;
  const Index p = b->problem[i], first = b->first[p], n = b->first[p + 1] - first;
  const Index from = c->first[p], K = c->first[p + 1] - from, self = i - first;
  if (c->slot[i] >= 0 || K == 0) {
    if (lane() == 0) c->label[i] = c->slot[i];
    return;
  }
  const Row row(source, p, n, self, tile, q * K);
  double best = -infinity();
  for (Index e = lane(); e < K; e += kWarp) {
    const double v = static_cast<double>(row.value(c->exemplar[from + e] - first, e));
    best = v > best ? v : best;
  }
  best = warp_max(best);
  // The jitter and the tile's error can only decide between entries this close to the largest.
  const double floor =
      best - 4 * (Number<T>::relative * fabs(best) + Number<T>::absolute) - 2 * row.error;
  double closest = -infinity();
  int label = -1;
  if (best > -infinity())
    for (Index e = lane(); e < K; e += kWarp) {
      const Index k = c->exemplar[from + e] - first;
      if (!(static_cast<double>(row.value(k, e)) >= floor)) continue;
      const double v = jittered<T>(row.exact(k), self, k, *b);
      if (v > closest) {
        closest = v;
        label = static_cast<int>(from + e);
      }
    }
  const double winner = warp_max(closest);
  const int candidate = label >= 0 && closest == winner ? -label : -0x7fffffff;
  const int chosen = -warp_max(candidate);  // the lowest slot of equals
  if (lane() == 0) c->label[i] = chosen == 0x7fffffff ? -1 : chosen;
}

// How well each point would serve its cluster: the sum of its column over the members.
template <class T, class Row>
__device__ void refine(const Batch* b, const Clusters* c, const Source* source) {
  for (Index j = thread_in_grid(); j < b->points; j += threads_in_grid()) {
    const int slot = c->label[j];
    if (slot < 0) continue;
    const Index p = b->problem[j], first = b->first[p], n = b->first[p + 1] - first;
    double sum = 0;
    for (Index e = c->member_first[slot]; e < c->member_first[slot + 1]; ++e) {
      const Index i = c->member[e];
      if (i == j) {
        sum += b->preference[j];
        continue;
      }
      const Row row(source, p, n, i - first, 0, 0);
      sum += jittered<T>(row.exact(j - first), i - first, j - first, *b);
    }
    c->support[j] = sum;
  }
}

extern "C" __global__ void best_members(const Clusters* c, Index slots) {
  for (Index slot = thread_in_grid(); slot < slots; slot += threads_in_grid()) {
    int best = c->exemplar[slot];
    double most = -infinity();
    for (Index e = c->member_first[slot]; e < c->member_first[slot + 1]; ++e)
      if (c->support[c->member[e]] > most) {
        best = c->member[e];
        most = c->support[best];
      }
    c->best[slot] = best;
  }
}

// Similarities to the exemplars plus the exemplars' preferences, a block a problem.
template <class T, class Row>
__device__ void net_similarity(const Batch* b, const Clusters* c, const Source* source,
                               const T* preference) {
  EPRUNER_SHARED(shared);
  double* sums = reinterpret_cast<double*>(shared);
  const Index p = blockIdx.x, first = b->first[p], n = b->first[p + 1] - first;
  double sum = 0;
  for (Index i = first + threadIdx.x; i < first + n; i += blockDim.x) {
    if (c->label[i] < 0) continue;
    const Index k = c->exemplar[c->label[i]];
    const Row row(source, p, n, i - first, 0, 0);
    sum += k == i ? static_cast<double>(preference[i]) : row.exact(k - first);
  }
  sum = warp_sum(sum);
  if (lane() == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) all += sums[w];
  c->net[p] = c->first[p + 1] > c->first[p] ? all : -infinity();
}

// ---- The kernels by name ------------------------------------------------------------------------

#define EPRUNER_KERNELS(T, suffix)                                                              \
  extern "C" __global__ void distances_##suffix(const T* product, const T* x, Index n, Index d, \
                                                T* S) {                                         \
    distances<T>(product, x, n, d, S);                                                          \
  }                                                                                             \
  extern "C" __global__ void inspect_##suffix(const Batch* b, const Source* source,             \
                                              const T* preference, int* flags) {                \
    inspect<T>(b, source, preference, flags);                                                   \
  }                                                                                             \
  extern "C" __global__ void begin_##suffix(const Batch* b, const T* preference) {              \
    begin<T>(b, preference);                                                                    \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(1024)                                            \
      small_##suffix(const Batch* b, const Source* source, const int* which) {                  \
    small<T>(b, source, which);                                                                 \
  }                                                                                             \
  extern "C" __global__ void unbalanced_##suffix(const Batch* b, const ActiveSet* g,            \
                                                 const Source* source) {                        \
    unbalanced<T>(b, g, source);                                                                \
  }                                                                                             \
  extern "C" __global__ void burst_##suffix(const Batch* b, const ActiveSet* g,                 \
                                            const Source* source) {                             \
    burst<T>(b, g, source);                                                                     \
  }                                                                                             \
  extern "C" __global__ void dense_begin_##suffix(const Batch* b, const Source* source, T* s) { \
    dense_begin<T>(b, source, s);                                                               \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(1024)                                            \
      dense_rows_##suffix(const Batch* b, const T* s, T* r, T* a, double* partial) {            \
    dense_rows<T>(b, s, r, a, partial);                                                         \
  }

#define EPRUNER_ROW_KERNELS(T, Row, suffix)                                                       \
  extern "C" __global__ void medians_##suffix(const Batch* b, const Source* source, Index first,  \
                                              Index tile, T* median) {                            \
    medians<T, Row<T>>(b, source, first, tile, median);                                           \
  }                                                                                               \
  extern "C" __global__ void select_##suffix(const Batch* b, const ActiveSet* g,                  \
                                             const Source* source, const int* rows, Index tile,   \
                                             int* refilled) {                                     \
    select<T, Row<T>>(b, g, source, rows, tile, refilled);                                        \
  }                                                                                               \
  extern "C" __global__ void assign_##suffix(const Batch* b, const Clusters* c,                   \
                                             const Source* source, Index first, Index count,      \
                                             Index tile) {                                        \
    assign<T, Row<T>>(b, c, source, first, count, tile);                                          \
  }                                                                                               \
  extern "C" __global__ void refine_##suffix(const Batch* b, const Clusters* c,                   \
                                             const Source* source) {                              \
    refine<T, Row<T>>(b, c, source);                                                              \
  }                                                                                               \
  extern "C" __global__ void net_similarity_##suffix(const Batch* b, const Clusters* c,           \
                                                     const Source* source, const T* preference) { \
    net_similarity<T, Row<T>>(b, c, source, preference);                                          \
  }

EPRUNER_KERNELS(float, f32)
EPRUNER_KERNELS(double, f64)
EPRUNER_ROW_KERNELS(float, MatrixRow, matrix_f32)
EPRUNER_ROW_KERNELS(double, MatrixRow, matrix_f64)
EPRUNER_ROW_KERNELS(float, ProductRow, product_f32)
EPRUNER_ROW_KERNELS(double, ProductRow, product_f64)
