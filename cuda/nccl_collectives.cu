// Ordered sums over NCCL. All of it runs on a stream of its own, or that of other collectives. Events
// tie it to the backend's stream: what was told before a call comes before it, what is told after
// its wait() or finish() comes after. The host waits in scalar calls alone.
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
#include "rank_exchange.h"
#include "waits.h"

namespace utrain {
namespace {

constexpr int64_t kScalarBytes = 8;
constexpr int64_t kEnds = 256;
constexpr double kOfLimit = 0.9;  // after which a wait ends, so that it ends before the limit

class NcclCollectives : public Collectives {
 public:
  NcclCollectives(int rank, int size, Backend& backend, const NcclOptions& options)
      : rank_(rank),
        size_(size),
        timeout_s_(options.timeout_s),
        watchdog_(options.watchdog),
        backend_stream_(cuda::stream_of(backend)),
        free_at_start_(cuda::free_bytes()),
        copy_engines_(options.copy_engines && size > 1),
        lane_(lane_of(options)),
        backend_reached_(cuda::make_event()),
        exchange_(rank, size, options.scratch_bytes),
        scalars_(cuda::make_device_memory(kScalarBytes * size)),
        host_scalars_(cuda::make_pinned(kScalarBytes * size)) {
    for (int64_t i = 0; i < kEnds; ++i) ends_.push_back(cuda::make_event());
  }

  ~NcclCollectives() override {
    if (!comm_) return;
    if (watchdog_ != nullptr) watchdog_->forget(this);
    if (!lane_->failed()) {
      exchange_.drain(stream());
      cudaStreamSynchronize(stream());
    }
    std::erase(lane_->communicators, &*comm_);
  }

  // Before any other call. Its own waits end in time; NCCL's may not where a rank or the network is
  // lost.
  void connect(const ncclUniqueId& id, double seconds) {
    connect_seconds_ = seconds;
    deadline_ = Clock::now() +
                std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    comm_.emplace(id, rank_, size_);
    lane_->communicators.push_back(&*comm_);
    if (watchdog_ != nullptr)
      watchdog_->at_hang(this, [comm = comm_->get()] { ncclCommAbort(comm); });
    if (copy_engines_) exchange_.open_mailbox(gather_bytes(), agree());
    take_memory();
    reserve_bytes_ = std::max(exchange_.scratch_bytes(), free_at_start_ - cuda::free_bytes());
    deadline_ = Clock::time_point::max();
  }

  Watchdog* watchdog() const { return watchdog_; }
  double seconds_to_connect() const {
    return watchdog_ == nullptr ? timeout_s_ : kOfLimit * watchdog_->limit();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int64_t reserve_bytes() const override { return reserve_bytes_; }

  void begin_all_reduce_sum(const Tensor& x) override {
    const Begun begun(*this, CallKind::all_reduce, x.n_elem());
    const int64_t n = x.n_elem();
    const Tensor whole = flat(x, n);
    if (size_ > 1 && n > 0) {
      const Tensor own = whole.columns(slice_begin(n, rank_, size_), slice_size(n, rank_, size_));
      exchange_.sum_slice(*comm_, own, whole, stream());
      exchange_.gather(*comm_, whole, own, stream());
    }
    queued();
  }

  void begin_reduce_scatter_sum(const Tensor& shard, const Tensor& x) override {
    const Begun begun(*this, CallKind::reduce_scatter, x.n_elem());
    const int64_t n = x.n_elem();
    exchange_.sum_slice(*comm_, flat(shard, slice_size(n, rank_, size_)), flat(x, n), stream());
    queued();
  }

  void begin_all_gather(const Tensor& whole, const Tensor& shard) override {
    const Begun begun(*this, CallKind::all_gather, whole.n_elem());
    const int64_t n = whole.n_elem();
    exchange_.gather(*comm_, flat(whole, n), flat(shard, slice_size(n, rank_, size_)), stream());
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
    if (whole.cols > 0) comm_->broadcast(whole.data, whole.cols * size_of(x.dtype), root, stream());
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
    return max_of(gather_scalars(x));
  }

  void barrier() override {
    const Numbered numbered(*this, CallKind::barrier);
    gather_scalars(int64_t{0});
  }

  void share(std::span<const Tensor> shards) override {
    const Numbered numbered(*this, CallKind::agree);
    CUDA_CHECK(cudaStreamSynchronize(backend_stream_));  // they are written
    exchange_.share(shards, gather_bytes(), agree());
    queued();
  }

  void shared_changed() override {
    if (!exchange_.shares()) return;
    const Begun begun(*this, CallKind::barrier, 0);
    exchange_.meet(stream());
    queued();
  }

 private:
  static std::shared_ptr<cuda::Lane> lane_of(const NcclOptions& options) {
    if (options.beside == nullptr) return cuda::make_lane();
    const auto* beside = dynamic_cast<const NcclCollectives*>(options.beside);
    ASSERT(beside != nullptr);
    return beside->lane_;
  }

  cuda::RankExchange::Gather gather_bytes() {
    return [this](std::byte* all, int64_t bytes) {
      comm_->gather(all, all + rank_ * bytes, bytes, stream());
      wait_on_host();
    };
  }
  cuda::RankExchange::Agree agree() {
    return [this](bool own) { return max_of(gather_scalars(int64_t{!own})) == 0; };
  }

  // NCCL takes the memory of a connection or an algorithm when it is first used: now, not in a
  // step.
  void take_memory() {
    exchange_.use_all(*comm_, stream());
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

  // [size] the host's values of all ranks; the host waits, the backend's stream does not.
  template <class T>
  std::vector<T> gather_scalars(T x) {
    static_assert(sizeof(T) == kScalarBytes);
    auto* device = static_cast<std::byte*>(scalars_.get());
    std::byte* own = device + rank_ * kScalarBytes;
    std::memcpy(host_scalars_.get(), &x, sizeof(T));
    CUDA_CHECK(
        cudaMemcpyAsync(own, host_scalars_.get(), kScalarBytes, cudaMemcpyHostToDevice, stream()));
    comm_->gather(device, own, kScalarBytes, stream());
    queued();
    std::vector<T> values(static_cast<size_t>(size_));
    CUDA_CHECK(cudaMemcpyAsync(host_scalars_.get(), device, kScalarBytes * size_,
                               cudaMemcpyDeviceToHost, stream()));
    wait_on_host();
    std::memcpy(values.data(), host_scalars_.get(), values.size() * sizeof(T));
    return values;
  }

  static int64_t max_of(const std::vector<int64_t>& values) {
    return *std::max_element(values.begin(), values.end());
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
      if (Clock::now() > deadline_) cuda::fail_waiting(rank_, size_, connect_seconds_);
      if (watchdog_ != nullptr) watchdog_->waits();
      std::this_thread::yield();
    }
  }

  cudaStream_t stream() const { return lane_->stream.get(); }

  using Clock = std::chrono::steady_clock;

  int rank_, size_, timeout_s_;
  Watchdog* watchdog_;
  double connect_seconds_ = 0.0;
  Clock::time_point deadline_ = Clock::time_point::max();
  cudaStream_t backend_stream_;
  int64_t free_at_start_;
  bool copy_engines_;
  std::shared_ptr<cuda::Lane> lane_;
  cuda::Event backend_reached_;
  cuda::Waits waits_;              // of the backend's stream
  std::vector<cuda::Event> ends_;  // [kEnds] of the newest calls, by number
  cuda::RankExchange exchange_;
  cuda::DeviceMemory scalars_;  // [size]
  cuda::PinnedMemory host_scalars_;
  std::optional<cuda::NcclCommunicator> comm_;  // from connect on; goes first
  int64_t waited_for_ = 0;                      // number of a call that the backend already follows
  int64_t reserve_bytes_ = 0;
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
  auto* collectives = dynamic_cast<NcclCollectives*>(prepared.get());
  ncclUniqueId id;
  ASSERT(collectives != nullptr && unique_id.size() == sizeof id.internal);
  std::memcpy(id.internal, unique_id.data(), sizeof id.internal);
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  const double seconds = collectives->seconds_to_connect();
  std::optional<Watchdog::InCall> call;
  if (Watchdog* watchdog = collectives->watchdog()) call.emplace(*watchdog, CallKind::connect);
  const bool connected = cuda::done_within(seconds, [=] {
    CUDA_CHECK(cudaSetDevice(device));
    collectives->connect(id, kOfLimit * seconds);
  });
  if (!connected) {
    (void)prepared.release();
    cuda::fail_waiting(collectives->rank(), collectives->size(), seconds);
  }
  return prepared;
}

}  // namespace utrain
