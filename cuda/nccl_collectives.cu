// Ordered sums over NCCL: every rank owns one slice, receives it from all others, adds in rank
// order, and gives the sum to all. ncclAllReduce chooses an order by algorithm and size, so it
// cannot keep the order promise of comm/collectives.h.
//   All of it runs on a stream of its own, or that of other collectives. Events tie it to the
// backend's stream: what was told before a call comes before it, what is told after its wait() or
// finish() comes after. The host waits in scalar calls alone. Sums go in windows, so that what was
// received fits into the scratch memory.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "backend.h"
#include "comm/nccl_collectives.h"
#include "comm/watchdog.h"
#include "cuda_backend.h"
#include "cuda_check.h"
#include "handle.h"
#include "nccl_communicator.h"
#include "nccl_lane.h"
#include "peer_memory.h"
#include "rank_sum.h"
#include "waits.h"

namespace utrain {
namespace {

constexpr int64_t kScalarBytes = 8;
constexpr int64_t kEnds = 256;

class NcclCollectives : public Collectives {
 public:
  NcclCollectives(int rank, int size, Backend& backend, const NcclOptions& options)
      : rank_(rank),
        size_(size),
        timeout_s_(options.timeout_s),
        watchdog_(options.watchdog),
        backend_stream_(cuda::stream_of(backend)),
        free_at_start_(cuda::free_bytes()),
        lane_(lane_of(size, options)),
        lane_bytes_(options.beside == nullptr ? lane_->scratch_bytes : 0),
        backend_reached_(cuda::make_event()),
        part_bytes_(cuda::bytes_of_part(lane_->scratch_bytes, size)),
        scalars_(cuda::make_device_memory(kScalarBytes * size)),
        host_scalars_(cuda::make_pinned(kScalarBytes * size)) {
    for (int64_t i = 0; i < kEnds; ++i) ends_.push_back(cuda::make_event());
  }

  ~NcclCollectives() override {
    if (!comm_) return;
    if (watchdog_ != nullptr) watchdog_->forget(this);
    if (!lane_->failed()) cudaStreamSynchronize(stream());
    std::erase(lane_->communicators, &*comm_);
  }

  // Before any other call. May not return where a rank or the network is lost.
  void connect(const ncclUniqueId& id) {
    deadline_ = Clock::now() + std::chrono::seconds(timeout_s_);
    comm_.emplace(id, rank_, size_);
    lane_->communicators.push_back(&*comm_);
    if (watchdog_ != nullptr)
      watchdog_->at_hang(this, [comm = comm_->get()] { ncclCommAbort(comm); });
    take_memory();
    reserve_bytes_ = std::max(lane_bytes_, free_at_start_ - cuda::free_bytes());
    deadline_ = Clock::time_point::max();
  }

  int timeout_s() const { return timeout_s_; }

  [[noreturn]] void fail_waiting() const { cuda::fail_waiting(rank_, size_, timeout_s_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int64_t reserve_bytes() const override { return reserve_bytes_; }

  void begin_all_reduce_sum(const Tensor& x) override {
    const Begun begun(*this, CallKind::all_reduce, x.n_elem());
    const int64_t n = x.n_elem();
    const Tensor whole = flat(x, n);
    if (size_ > 1 && n > 0) {
      const Tensor own = whole.columns(slice_begin(n, rank_, size_), slice_size(n, rank_, size_));
      sum_slice(own, whole);
      gather_slices(whole, own);
    }
    queued();
  }

  void begin_reduce_scatter_sum(const Tensor& shard, const Tensor& x) override {
    const Begun begun(*this, CallKind::reduce_scatter, x.n_elem());
    const int64_t n = x.n_elem();
    sum_slice(flat(shard, slice_size(n, rank_, size_)), flat(x, n));
    queued();
  }

  void begin_all_gather(const Tensor& whole, const Tensor& shard) override {
    const Begun begun(*this, CallKind::all_gather, whole.n_elem());
    const int64_t n = whole.n_elem();
    gather_slices(flat(whole, n), flat(shard, slice_size(n, rank_, size_)));
    queued();
  }

  void finish() override { wait(number_); }

  void wait(int64_t number) override {
    ASSERT(number <= number_);
    if (number <= waited_for_) return;
    waits_.wait(backend_stream_, end_of(number));
    waited_for_ = number;
  }
  double exposed_seconds() override { return waits_.seconds(); }

  void all_reduce_sum(const Tensor& x) override {
    begin_all_reduce_sum(x);
    finish();
  }
  void reduce_scatter_sum(const Tensor& shard, const Tensor& x) override {
    begin_reduce_scatter_sum(shard, x);
    finish();
  }
  void all_gather(const Tensor& whole, const Tensor& shard) override {
    begin_all_gather(whole, shard);
    finish();
  }

  void broadcast(const Tensor& x, int root) override {
    const Begun begun(*this, CallKind::broadcast, x.n_elem());
    ASSERT(root >= 0 && root < size_);
    const Tensor whole = flat(x, x.n_elem());
    if (whole.cols > 0) broadcast_bytes(whole.data, whole.cols * size_of(x.dtype), root);
    queued();
    finish();
  }

  double all_reduce_sum(double x) override {
    const Numbered numbered(*this, CallKind::scalar);
    const std::vector<double> values = gather_scalars(x);
    double sum = values[0];
    for (size_t r = 1; r < values.size(); ++r) sum += values[r];
    return sum;
  }

  int64_t all_reduce_max(int64_t x) override {
    const Numbered numbered(*this, CallKind::scalar);
    const std::vector<int64_t> values = gather_scalars(x);
    return *std::max_element(values.begin(), values.end());
  }

  void barrier() override {
    const Numbered numbered(*this, CallKind::barrier);
    gather_scalars(int64_t{0});
  }

  void share(std::span<const Tensor> shards) override {
    if (size_ == 1) return;
    CUDA_CHECK(cudaStreamSynchronize(backend_stream_));  // they are written
    auto peers =
        cuda::PeerMemory::open(shards, rank_, size_, [this](std::byte* all, int64_t bytes) {
          gather_bytes(all, all + rank_ * bytes, bytes);
          wait_on_host();
        });
    // Where one cannot, all gather.
    if (all_reduce_max(peers == nullptr) == 0) peers_.push_back(std::move(peers));
  }

  // A gather of a few bytes: what is queued after it begins when all ranks have reached it.
  void shared_changed() override {
    if (peers_.empty()) return;
    const Begun begun(*this, CallKind::barrier, 0);
    auto* device = static_cast<std::byte*>(scalars_.get());
    gather_bytes(device, device + rank_ * kScalarBytes, kScalarBytes);
    queued();
  }

 private:
  static std::shared_ptr<cuda::Lane> lane_of(int size, const NcclOptions& options) {
    if (options.beside == nullptr)
      return cuda::make_lane(cuda::bytes_of_part(options.scratch_bytes, size) * (size - 1));
    const auto* beside = dynamic_cast<const NcclCollectives*>(options.beside);
    ASSERT(beside != nullptr && beside->size_ >= size);
    return beside->lane_;
  }

  // NCCL takes the memory of a connection or an algorithm when it is first used: now, not in a
  // step.
  void take_memory() {
    const int64_t n = size_ * kBlock, bytes = n * size_of(DType::f32);
    const cuda::DeviceMemory probe = cuda::make_device_memory(bytes);
    CUDA_CHECK(cudaMemsetAsync(probe.get(), 0, bytes, stream()));
    const Tensor whole = make_tensor(probe.get(), DType::f32, 1, n);
    const Tensor own = whole.columns(slice_begin(n, rank_, size_), kBlock);
    sum_slice(own, whole);
    send_slices(whole, own);
    if (size_ > 1) {
      const int64_t share =
          part_bytes_ * (size_ - 1) / size_ / cuda::kPartAlignment * cuda::kPartAlignment;
      gather_bytes(part_of(0), part_of(0) + rank_ * share, share);
      broadcast_bytes(part_of(0), share, 0);
    }
    gather_scalars(int64_t{0});
  }

  // A call has the next number, and the watchdog knows what it is.
  struct Numbered {
    Numbered(NcclCollectives& of, CallKind kind, int64_t n_elem = 0) {
      ++of.number_;
      if (of.watchdog_ != nullptr) call.emplace(*of.watchdog_, kind, n_elem);
    }
    std::optional<Watchdog::InCall> call;
  };
  // Every call but the scalar ones stands between this and queued().
  struct Begun : Numbered {
    Begun(NcclCollectives& of, CallKind kind, int64_t n_elem) : Numbered(of, kind, n_elem) {
      CUDA_CHECK(cudaEventRecord(of.backend_reached_.get(), of.backend_stream_));
      CUDA_CHECK(cudaStreamWaitEvent(of.stream(), of.backend_reached_.get()));
    }
  };
  void queued() { CUDA_CHECK(cudaEventRecord(end_of(number_), stream())); }

  // The end of a call, or of a later one where kEnds calls have begun since.
  cudaEvent_t end_of(int64_t number) const {
    return ends_[static_cast<size_t>(number % kEnds)].get();
  }

  void sum_slice(const Tensor& shard, const Tensor& x) {
    ASSERT(shard.dtype == x.dtype);
    if (x.dtype == DType::f32) return sum_slice(shard.as<float>(), x.as<float>(), x.cols);
    if (x.dtype == DType::f64) return sum_slice(shard.as<double>(), x.as<double>(), x.cols);
    ASSERT(!"sums over ranks are taken in float32 or float64");
  }

  // Every rank gets its slice from all others, window by window, and adds. In place is safe: a rank
  // writes its own slice only, and never sends that.
  template <class T>
  void sum_slice(T* shard, const T* x, int64_t n) {
    const int64_t window_elems = part_bytes_ / static_cast<int64_t>(sizeof(T));
    const T* slice = x + slice_begin(n, rank_, size_);
    for (int64_t begin = 0; begin < longest_slice(n); begin += window_elems) {
      // Elements of a rank's slice that lie in this window: 0 where the slice is shorter.
      const auto in_window = [&](int r) {
        return std::clamp<int64_t>(slice_size(n, r, size_) - begin, 0, window_elems);
      };
      const int64_t own = in_window(rank_);
      NCCL_CHECK(ncclGroupStart());
      for (int i = 1; i < size_; ++i) {
        const int to = (rank_ + i) % size_, from = (rank_ + size_ - i) % size_;
        send(x + slice_begin(n, to, size_) + begin, in_window(to) * sizeof(T), to);
        receive(part_of(from < rank_ ? from : from - 1), own * sizeof(T), from);
      }
      NCCL_CHECK(ncclGroupEnd());
      const cuda::RankParts<T> parts{slice + begin, reinterpret_cast<const T*>(part_of(0)),
                                     window_elems, rank_, size_};
      cuda::sum_in_rank_order(shard + begin, parts, own, stream());
    }
  }

  // The slices of all ranks into place; NCCL's own way where they are equal.
  void gather_slices(const Tensor& whole, const Tensor& shard) {
    ASSERT(shard.dtype == whole.dtype);
    const int64_t n = whole.cols;
    if (n == 0) return;
    for (const auto& peers : peers_) {
      if (peers->gather(whole, shard, stream())) return;
    }
    if (n % (size_ * kBlock) == 0)
      gather_bytes(whole.data, shard.data, shard.cols * size_of(shard.dtype));
    else
      send_slices(whole, shard);
  }

  void send_slices(const Tensor& whole, const Tensor& shard) {
    const int64_t n = whole.cols, size = size_of(whole.dtype);
    auto* to = static_cast<std::byte*>(whole.data);
    std::byte* own = to + slice_begin(n, rank_, size_) * size;
    if (shard.cols > 0 && own != shard.data) {
      CUDA_CHECK(
          cudaMemcpyAsync(own, shard.data, shard.cols * size, cudaMemcpyDeviceToDevice, stream()));
    }
    NCCL_CHECK(ncclGroupStart());
    for (int i = 1; i < size_; ++i) {
      const int next = (rank_ + i) % size_, from = (rank_ + size_ - i) % size_;
      send(shard.data, shard.cols * size, next);
      receive(to + slice_begin(n, from, size_) * size, slice_size(n, from, size_) * size, from);
    }
    NCCL_CHECK(ncclGroupEnd());
  }

  void send(const void* data, int64_t bytes, int to) {
    if (bytes > 0) NCCL_CHECK(ncclSend(data, bytes, ncclUint8, to, comm_->get(), stream()));
  }
  void receive(void* data, int64_t bytes, int from) {
    if (bytes > 0) NCCL_CHECK(ncclRecv(data, bytes, ncclUint8, from, comm_->get(), stream()));
  }
  // all [size * bytes] = what each rank gave; data may stand in its place there.
  void gather_bytes(void* all, const void* data, int64_t bytes) {
    NCCL_CHECK(ncclAllGather(data, all, bytes, ncclUint8, comm_->get(), stream()));
  }
  void broadcast_bytes(void* data, int64_t bytes, int root) {
    NCCL_CHECK(ncclBroadcast(data, data, bytes, ncclUint8, root, comm_->get(), stream()));
  }

  // [size] the host's values of all ranks; the host waits, the backend's stream does not.
  template <class T>
  std::vector<T> gather_scalars(T x) {
    static_assert(sizeof(T) == kScalarBytes);
    auto* device = static_cast<std::byte*>(scalars_.get());
    std::byte* own = device + rank_ * kScalarBytes;
    std::memcpy(host_scalars_.get(), &x, sizeof(T));
    CUDA_CHECK(
        cudaMemcpyAsync(own, host_scalars_.get(), kScalarBytes, cudaMemcpyHostToDevice, stream()));
    gather_bytes(device, own, kScalarBytes);
    queued();
    std::vector<T> values(static_cast<size_t>(size_));
    CUDA_CHECK(cudaMemcpyAsync(host_scalars_.get(), device, kScalarBytes * size_,
                               cudaMemcpyDeviceToHost, stream()));
    wait_on_host();
    std::memcpy(values.data(), host_scalars_.get(), values.size() * sizeof(T));
    return values;
  }

  // Until the stream is empty; not for ever while connecting, or where NCCL finds out that a rank
  // is lost.
  void wait_on_host() {
    for (;;) {
      const cudaError_t status = cudaStreamQuery(stream());
      if (status == cudaSuccess) return;
      if (status != cudaErrorNotReady) CUDA_CHECK(status);
      cudaGetLastError();  // "not ready" is no failure of the next launch
      lane_->check();
      if (Clock::now() > deadline_) fail_waiting();
      std::this_thread::yield();
    }
  }

  cudaStream_t stream() const { return lane_->stream.get(); }
  std::byte* part_of(int i) const {
    return static_cast<std::byte*>(lane_->scratch.get()) + i * part_bytes_;
  }
  int64_t longest_slice(int64_t n) const {
    int64_t longest = 0;
    for (int r = 0; r < size_; ++r) longest = std::max(longest, slice_size(n, r, size_));
    return longest;
  }

  using Clock = std::chrono::steady_clock;

  int rank_, size_, timeout_s_;
  Watchdog* watchdog_;
  Clock::time_point deadline_ = Clock::time_point::max();
  cudaStream_t backend_stream_;
  int64_t free_at_start_;
  std::shared_ptr<cuda::Lane> lane_;
  int64_t lane_bytes_;  // of scratch memory taken for this
  cuda::Event backend_reached_;
  cuda::Waits waits_;              // of the backend's stream
  std::vector<cuda::Event> ends_;  // [kEnds] of the newest calls, by number
  int64_t part_bytes_;             // [size - 1] parts received from the others
  cuda::DeviceMemory scalars_;     // [size]
  cuda::PinnedMemory host_scalars_;
  std::optional<cuda::NcclCommunicator> comm_;  // from connect on; goes first
  int64_t waited_for_ = 0;                      // number of a call that the backend already follows
  int64_t reserve_bytes_ = 0;
  std::vector<std::unique_ptr<cuda::PeerMemory>> peers_;  // [calls of share]
};

}  // namespace

std::unique_ptr<Collectives> prepare_nccl_collectives(int rank, int size, Backend& backend,
                                                      const NcclOptions& options) {
  ASSERT(rank >= 0 && rank < size);
  return std::make_unique<NcclCollectives>(rank, size, backend, options);
}

// A call of NCCL that waits for a lost rank may never return: then it is left behind in its thread,
// with all it uses, and the process ends without it.
std::unique_ptr<Collectives> connect_nccl_collectives(std::unique_ptr<Collectives> prepared,
                                                      const std::string& unique_id) {
  constexpr std::chrono::seconds kGrace{2};  // a wait that knows the time ends by itself
  auto* collectives = dynamic_cast<NcclCollectives*>(prepared.get());
  ncclUniqueId id;
  ASSERT(collectives != nullptr && unique_id.size() == sizeof id.internal);
  std::memcpy(id.internal, unique_id.data(), sizeof id.internal);
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  const auto bound = std::chrono::seconds(collectives->timeout_s()) + kGrace;
  const bool connected = cuda::done_within(bound, [=] {
    CUDA_CHECK(cudaSetDevice(device));
    collectives->connect(id);
  });
  if (!connected) {
    (void)prepared.release();
    collectives->fail_waiting();
  }
  return prepared;
}

}  // namespace utrain
