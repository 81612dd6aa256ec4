// Collectives over tensors in a GPU's memory by way of the host: each tensor is copied out to
// pinned memory, goes through host collectives, and is copied back. Slow next to NCCL, but several
// ranks may share one GPU, and sums keep the host's order to the bit.
#pragma once

#include <memory>

#include "backend.h"
#include "comm/collectives.h"

namespace utrain {

class StagedCollectives : public Collectives {
 public:
  // backend outlives this object.
  StagedCollectives(std::unique_ptr<Collectives> host, Backend& backend);

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  void all_reduce_sum(const Tensor& x) override;
  void reduce_scatter_sum(const Tensor& shard, const Tensor& x) override;
  void all_gather(const Tensor& whole, const Tensor& shard) override;
  void broadcast(const Tensor& x, int root) override;
  double all_reduce_sum(double x) override;
  int64_t all_reduce_max(int64_t x) override;
  void barrier() override;
  // Without the copies, which also wait for the computation before them.
  double exposed_seconds() override { return host_->exposed_seconds(); }

 private:
  struct HostBuffer {
    std::shared_ptr<void> memory;
    int64_t bytes = 0;
  };
  Tensor on_host(const Tensor& x, HostBuffer& buffer, bool copy);
  void to_device(const Tensor& x, const Tensor& host);

  std::unique_ptr<Collectives> host_;
  Backend& backend_;
  HostBuffer first_, second_;  // grow to the largest tensor, then stay
};

}  // namespace utrain
