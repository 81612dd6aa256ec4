// The steps to collectives over NCCL, so that a rank that lacks memory is told before the others
// wait for it.
#include "comm/nccl_collectives.h"
#include "comm/world.h"

namespace utrain {

std::unique_ptr<Collectives> open_nccl_collectives(const World& world, Backend& backend,
                                                   const NcclOptions& options) {
  return open_nccl_collectives(world, world.all_ranks(), backend, options);
}

std::unique_ptr<Collectives> open_nccl_collectives(const World& world, const RankGroup& group,
                                                   Backend& backend, const NcclOptions& options) {
  std::string id;
  world.together([&] {
    if (group.rank() == 0) id = nccl_unique_id();
  });
  id = group.broadcast(std::move(id));
  std::unique_ptr<Collectives> collectives;
  NcclOptions watched = options;
  watched.watchdog = &world.watchdog();
  world.together([&] {
    collectives = prepare_nccl_collectives(group.rank(), group.size(), backend, watched);
  });
  world.meet([&] { collectives = connect_nccl_collectives(std::move(collectives), id); });
  return collectives;
}

}  // namespace utrain
