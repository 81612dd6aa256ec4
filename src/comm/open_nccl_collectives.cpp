// The steps to collectives over NCCL, so that a rank that lacks memory is told before the others
// wait for it.
#include "comm/nccl_collectives.h"
#include "comm/world.h"

namespace utrain {

std::unique_ptr<Collectives> open_nccl_collectives(const World& world, Backend& backend,
                                                   const NcclOptions& options) {
  std::string id;
  world.first_rank([&] { id = nccl_unique_id(); });
  id = world.broadcast(std::move(id));
  std::unique_ptr<Collectives> collectives;
  world.together([&] {
    collectives = prepare_nccl_collectives(world.rank(), world.size(), backend, options);
  });
  world.meet([&] { collectives = connect_nccl_collectives(std::move(collectives), id); });
  return collectives;
}

}  // namespace utrain
