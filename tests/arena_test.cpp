// Layout of the arena: nothing that lives together overlaps, phases share, the table adds up.
#include "core/arena.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>

namespace utrain {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

TEST(Arena, HostBuffersLieInHostMemory) {
  Arena arena;
  const auto device = arena.declare("d", DType::f32, 1, 1, MemoryClass::optimizer);
  const auto first = arena.declare("h", DType::f32, 1, 65, MemoryClass::host);
  const auto second = arena.declare("h", DType::f32, 1, 1, MemoryClass::host);
  EXPECT_EQ(arena.bytes(), 256);
  EXPECT_EQ(arena.host_bytes(), 512 + 256);
  std::unique_ptr<void, Free> memory(std::aligned_alloc(256, 256)),
      host(std::aligned_alloc(256, 768));
  arena.place(memory.get(), host.get());
  EXPECT_EQ(arena[device].data, memory.get());
  EXPECT_EQ(arena[first].data, host.get());
  EXPECT_EQ(arena[second].data, static_cast<char*>(host.get()) + 512);
}

TEST(Arena, BuffersThatLiveTogetherDoNotOverlap) {
  Arena arena;
  const auto a = arena.declare("a", DType::f32, 3, 5, MemoryClass::base);
  const auto b = arena.declare("b", DType::bf16, 7, 1, MemoryClass::activations);
  const auto f1 =
      arena.declare("f1", DType::f32, 100, 1, MemoryClass::workspace, Lifetime::forward);
  const auto f2 = arena.declare("f2", DType::f32, 1, 1, MemoryClass::workspace, Lifetime::forward);
  const auto g = arena.declare("g", DType::f64, 9, 9, MemoryClass::workspace, Lifetime::backward);
  EXPECT_EQ(arena.bytes(), 256 + 256 + std::max(512 + 256, 768));
  std::unique_ptr<void, Free> memory(std::aligned_alloc(256, static_cast<size_t>(arena.bytes())));
  arena.place(memory.get());
  char* start = static_cast<char*>(memory.get());
  EXPECT_EQ(arena[a].data, start);
  EXPECT_EQ(arena[b].data, start + 256);
  EXPECT_EQ(arena[f1].data, start + 512);
  EXPECT_EQ(arena[f2].data, start + 1024);
  EXPECT_EQ(arena[g].data, start + 512);  // shares with the forward phase
  EXPECT_EQ(arena[b].rows, 7);
  EXPECT_EQ(arena[b].ld, 1);
}

TEST(Arena, ClassesAddUpToTheWhole) {
  Arena arena;
  arena.declare("a", DType::f32, 300, 5, MemoryClass::base);
  arena.declare("b", DType::f32, 300, 7, MemoryClass::optimizer);
  arena.declare("c", DType::f32, 10, 70, MemoryClass::workspace);
  arena.declare("d", DType::f32, 10, 700, MemoryClass::workspace, Lifetime::head);
  int64_t sum = 0;
  for (const MemoryClass c : kMemoryClasses) sum += arena.bytes(c);
  EXPECT_EQ(sum, arena.bytes());
  EXPECT_GE(arena.bytes(MemoryClass::optimizer), 300 * 7 * 4);
}

TEST(Arena, UseBeforePlacingIsAFault) {
  Arena arena;
  const auto a = arena.declare("a", DType::f32, 3, 5, MemoryClass::base);
  EXPECT_THROW(arena[a], Error);
}

}  // namespace
}  // namespace utrain
