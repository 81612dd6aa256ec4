// Ordered sums over MPI: every rank owns one slice, receives it from all others, adds in rank
// order, and sends the sum to all. MPI's own reductions choose an order by size and rank count, so
// they cannot keep the order promise.
#include "comm/mpi_collectives.h"

#include <algorithm>
#include <complex>
#include <cstring>

#include "comm/communicator.h"

namespace utrain {
namespace {

constexpr int64_t kMaxWindowElems = int64_t{1} << 26;  // 16 bytes each: MPI counts are int

// Messages under way. A failure is the end of the run, so nothing waits for the rest of them.
class Messages {
 public:
  explicit Messages(const RankGroup& group) : comm_(comm_of(group)), watchdog_(group.watchdog()) {}

  void receive(void* to, int64_t bytes, int from, int tag) {
    if (bytes == 0) return;
    MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
    MPI_CHECK(MPI_Irecv(to, static_cast<int>(bytes), MPI_BYTE, from, tag, comm_, &request));
  }
  void send(const void* from, int64_t bytes, int to, int tag) {
    if (bytes == 0) return;
    MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
    MPI_CHECK(MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, to, tag, comm_, &request));
  }
  void wait() {
    wait_for(watchdog_, requests_);
    requests_.clear();
  }

 private:
  MPI_Comm comm_;
  Watchdog& watchdog_;
  std::vector<MPI_Request> requests_;
};

// The number of the call, so that messages of two calls cannot be taken for each other. MPI
// promises tags to 32767.
int tag_of(int64_t number) {
  return static_cast<int>(number % 32768);
}

// Adds the time from here to the end of the scope.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), begin_(MPI_Wtime()) {}
  ~Stopwatch() { seconds_ += MPI_Wtime() - begin_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  double begin_;
};

// sum[i] = ((parts[0][i] + parts[1][i]) + ...). sum may be one of the parts.
template <class T>
void sum_in_rank_order(T* sum, const std::vector<const T*>& parts, int64_t n) {
  T block[Collectives::kBlock];
  for (int64_t begin = 0; begin < n; begin += Collectives::kBlock) {
    const int64_t m = std::min(n - begin, Collectives::kBlock);
    std::copy_n(parts[0] + begin, m, block);
    for (size_t r = 1; r < parts.size(); ++r) {
      for (int64_t i = 0; i < m; ++i) block[i] += parts[r][begin + i];
    }
    std::copy_n(block, m, sum + begin);
  }
}

}  // namespace

MpiCollectives::MpiCollectives(const RankGroup& group, int64_t window_elems)
    : group_(group),
      rank_(group.rank()),
      size_(group.size()),
      window_elems_(std::clamp<int64_t>(window_elems / group.size(), 1, kMaxWindowElems)) {}

void MpiCollectives::all_reduce_sum(const Tensor& x) {
  ++number_;
  const Watchdog::InCall call(group_.watchdog(), CallKind::all_reduce, x.n_elem());
  const Stopwatch stopwatch(seconds_);
  const int64_t n = x.n_elem();
  const Tensor whole = flat(x, n);
  const Tensor own = whole.columns(slice_begin(n, rank_, size_), slice_size(n, rank_, size_));
  sum_slice(own, whole);
  gather_slices(whole, own);
}

void MpiCollectives::reduce_scatter_sum(const Tensor& shard, const Tensor& x) {
  ++number_;
  const Watchdog::InCall call(group_.watchdog(), CallKind::reduce_scatter, x.n_elem());
  const Stopwatch stopwatch(seconds_);
  const int64_t n = x.n_elem();
  sum_slice(flat(shard, slice_size(n, rank_, size_)), flat(x, n));
}

void MpiCollectives::all_gather(const Tensor& whole, const Tensor& shard) {
  ++number_;
  const Watchdog::InCall call(group_.watchdog(), CallKind::all_gather, whole.n_elem());
  const Stopwatch stopwatch(seconds_);
  const int64_t n = whole.n_elem();
  gather_slices(flat(whole, n), flat(shard, slice_size(n, rank_, size_)));
}

void MpiCollectives::broadcast(const Tensor& x, int root) {
  ++number_;
  const Watchdog::InCall call(group_.watchdog(), CallKind::broadcast, x.n_elem());
  const Stopwatch stopwatch(seconds_);
  ASSERT(root >= 0 && root < size_);
  const int64_t n = x.n_elem();
  const Tensor whole = flat(x, n);
  for (int64_t begin = 0; begin < n; begin += kMaxWindowElems) {
    const Tensor part = whole.columns(begin, std::min(n - begin, kMaxWindowElems));
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_CHECK(MPI_Ibcast(part.data, static_cast<int>(part.cols * size_of(x.dtype)), MPI_BYTE, root,
                         comm_of(group_), &request));
    wait_for(group_.watchdog(), request);
  }
}

double MpiCollectives::all_reduce_sum(double x) {
  ++number_;
  const Watchdog::InCall call(group_.watchdog(), CallKind::scalar);
  std::vector<double> values(static_cast<size_t>(size_));
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(
      MPI_Iallgather(&x, 1, MPI_DOUBLE, values.data(), 1, MPI_DOUBLE, comm_of(group_), &request));
  wait_for(group_.watchdog(), request);
  double sum = values[0];
  for (size_t r = 1; r < values.size(); ++r) sum += values[r];
  return sum;
}

int64_t MpiCollectives::all_reduce_max(int64_t x) {
  ++number_;
  const Watchdog::InCall call(group_.watchdog(), CallKind::scalar);
  int64_t largest = x;
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Iallreduce(&x, &largest, 1, MPI_INT64_T, MPI_MAX, comm_of(group_), &request));
  wait_for(group_.watchdog(), request);
  return largest;
}

void MpiCollectives::barrier() {
  ++number_;
  const Watchdog::InCall call(group_.watchdog(), CallKind::barrier);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Ibarrier(comm_of(group_), &request));
  wait_for(group_.watchdog(), request);
}

void MpiCollectives::sum_slice(const Tensor& shard, const Tensor& x) {
  ASSERT(shard.dtype == x.dtype);
  switch (x.dtype) {
    case DType::f32: return sum_slice(shard.as<float>(), x.as<float>(), x.cols);
    case DType::f64: return sum_slice(shard.as<double>(), x.as<double>(), x.cols);
    case DType::c128: {
      using Complex = std::complex<double>;
      return sum_slice(shard.as<Complex>(), x.as<Complex>(), x.cols);
    }
    case DType::bf16:
    case DType::f16: break;
  }
  ASSERT(!"sums over ranks are taken in float32 or wider");
}

// Every rank gets its slice from all others, window by window, and adds. Point to point, because
// the displacements of MPI_Alltoallv are int and end at 2^31 elements. In place is safe: a rank
// writes its own slice only, and never sends that.
template <class T>
void MpiCollectives::sum_slice(T* shard, const T* x, int64_t n) {
  scratch_.resize(static_cast<size_t>(window_size(n, rank_, 0) * (size_ - 1)) * sizeof(T));
  const int tag = tag_of(number_);
  Messages messages(group_);
  std::vector<const T*> parts(static_cast<size_t>(size_));
  for (int64_t window = 0; window < n_windows(n); ++window) {
    const int64_t own = window_size(n, rank_, window);
    const int64_t begin = window * window_elems_;
    T* received = reinterpret_cast<T*>(scratch_.data());
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) {
        parts[static_cast<size_t>(r)] = x + slice_begin(n, r, size_) + begin;
        continue;
      }
      messages.receive(received, own * size_of(dtype_of<T>), r, tag);
      parts[static_cast<size_t>(r)] = received;
      received += own;
    }
    for (int i = 1; i < size_; ++i) {
      const int r = (rank_ + i) % size_;  // not all to rank 0 first
      messages.send(x + slice_begin(n, r, size_) + begin,
                    window_size(n, r, window) * size_of(dtype_of<T>), r, tag);
    }
    messages.wait();
    if (own > 0) sum_in_rank_order(shard + begin, parts, own);
  }
}

// The same way back: every rank sends its slice to all others, straight into place.
void MpiCollectives::gather_slices(const Tensor& whole, const Tensor& shard) {
  ASSERT(shard.dtype == whole.dtype);
  const int64_t n = whole.cols, bytes = size_of(whole.dtype);
  auto* to = static_cast<std::byte*>(whole.data);
  const auto* from = static_cast<const std::byte*>(shard.data);
  std::byte* own = to + slice_begin(n, rank_, size_) * bytes;
  if (shard.cols > 0 && own != from) {
    std::memcpy(own, from, static_cast<size_t>(shard.cols * bytes));
  }
  const int tag = tag_of(number_);
  Messages messages(group_);
  for (int64_t window = 0; window < n_windows(n); ++window) {
    const int64_t begin = window * window_elems_;
    for (int i = 1; i < size_; ++i) {
      const int r = (rank_ + size_ - i) % size_;
      messages.receive(to + (slice_begin(n, r, size_) + begin) * bytes,
                       window_size(n, r, window) * bytes, r, tag);
    }
    for (int i = 1; i < size_; ++i) {
      messages.send(from + begin * bytes, window_size(n, rank_, window) * bytes,
                    (rank_ + i) % size_, tag);
    }
    messages.wait();
  }
}

// Windows that the longest slice of n elements needs.
int64_t MpiCollectives::n_windows(int64_t n) const {
  int64_t longest = 0;
  for (int r = 0; r < size_; ++r) longest = std::max(longest, slice_size(n, r, size_));
  return (longest + window_elems_ - 1) / window_elems_;
}

// Elements of a rank's slice that lie in a window: 0 where the slice is shorter.
int64_t MpiCollectives::window_size(int64_t n, int rank, int64_t window) const {
  return std::clamp<int64_t>(slice_size(n, rank, size_) - window * window_elems_, 0, window_elems_);
}

}  // namespace utrain
