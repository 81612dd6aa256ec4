#include "parallel/staged_collectives.h"

namespace utrain {

StagedCollectives::StagedCollectives(std::unique_ptr<Collectives> host, Backend& backend)
    : host_(std::move(host)), backend_(backend) {}

Tensor StagedCollectives::on_host(const Tensor& x, HostBuffer& buffer, bool copy) {
  ASSERT(x.contiguous());
  const int64_t bytes = x.n_elem() * size_of(x.dtype);
  if (buffer.bytes < bytes) {
    buffer = {};  // before the next is taken
    buffer = {backend_.allocate_host(bytes), bytes};
  }
  if (copy) backend_.download(buffer.memory.get(), x.data, bytes);
  return make_tensor(buffer.memory.get(), x.dtype, x.rows, x.cols);
}

void StagedCollectives::to_device(const Tensor& x, const Tensor& host) {
  backend_.upload(x.data, host.data, x.n_elem() * size_of(x.dtype));
}

void StagedCollectives::all_reduce_sum(const Tensor& x) {
  ++number_;
  if (size() == 1) return;
  const Tensor host = on_host(x, first_, true);
  host_->all_reduce_sum(host);
  to_device(x, host);
}

void StagedCollectives::reduce_scatter_sum(const Tensor& shard, const Tensor& x) {
  ++number_;
  if (size() == 1 && shard.data == x.data) return;
  const Tensor whole = on_host(x, first_, true), part = on_host(shard, second_, false);
  host_->reduce_scatter_sum(part, whole);
  to_device(shard, part);
}

void StagedCollectives::all_gather(const Tensor& whole, const Tensor& shard) {
  ++number_;
  if (size() == 1 && shard.data == whole.data) return;
  const Tensor part = on_host(shard, second_, true), all = on_host(whole, first_, false);
  host_->all_gather(all, part);
  to_device(whole, all);
}

void StagedCollectives::broadcast(const Tensor& x, int root) {
  ++number_;
  if (size() == 1) return;
  const Tensor host = on_host(x, first_, rank() == root);
  host_->broadcast(host, root);
  to_device(x, host);
}

double StagedCollectives::all_reduce_sum(double x) {
  ++number_;
  return host_->all_reduce_sum(x);
}

int64_t StagedCollectives::all_reduce_max(int64_t x) {
  ++number_;
  return host_->all_reduce_max(x);
}

void StagedCollectives::barrier() {
  ++number_;
  host_->barrier();
}

}  // namespace utrain
