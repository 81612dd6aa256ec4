// Units that take places in turn hold what was gathered for them, whatever the number of places and
// the order of calls, and are gathered no oftener than they must.
#include "parallel/unit_store.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>

#include "comm/silent_collectives.h"

namespace utrain {
namespace {

constexpr int64_t kLayers = 11, kUnitElems = 2 * Collectives::kBlock;
constexpr int kRank = 1, kRanks = 2;

// Every element of a unit, which other ranks hold too.
float value_of(int64_t u, int64_t version) {
  return static_cast<float>(100 * version + u + 1);
}

// Gathers of a unit, known by what this rank's slice of it holds.
class Gathers : public SilentCollectives {
 public:
  Gathers() : SilentCollectives(kRank, kRanks) {}
  void all_gather(const Tensor& whole, const Tensor& shard) override {
    ++number_;
    ++n_gathers;
    std::fill_n(whole.as<float>(), whole.cols, *shard.as<float>());
  }
  int64_t n_gathers = 0;
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};

class Units {
 public:
  explicit Units(int64_t layers_held)
      : backend_(make_cpu_backend(DType::f32)), shards_(begins(), kRank, kRanks) {
    store_.emplace(UnitStore::Options{"units", DType::f32, MemoryClass::base, Holding::sharded,
                                      false, layers_held},
                   shards_, *backend_, gathers_, arena_);
    memory_.reset(std::aligned_alloc(256, static_cast<size_t>(arena_.bytes())));
    arena_.place(memory_.get());
    store_->bind(arena_);
    write();
  }

  void write() {
    ++version_;
    for (int64_t u = 0; u <= kLayers; ++u) {
      const Tensor own = store_->own(u);
      std::fill_n(own.as<float>(), own.cols, value_of(u, version_));
    }
    store_->own_changed();
  }

  // As the model asks for them: the embedding, up and down the layers.
  int64_t gathers_of_a_pass() {
    const int64_t before = gathers_.n_gathers;
    use(kLayers);
    for (int64_t l = 0; l < kLayers; ++l) use(l);
    use(kLayers);
    for (int64_t l = kLayers - 1; l >= 0; --l) use(l);
    return gathers_.n_gathers - before;
  }

 private:
  static std::vector<int64_t> begins() {
    std::vector<int64_t> begin;
    for (int64_t u = 0; u <= kLayers + 1; ++u) begin.push_back(u * kUnitElems);
    return begin;
  }

  void use(int64_t u) {
    store_->get(u);
    const Tensor unit = store_->unit(u);
    for (int64_t i = 0; i < unit.cols; ++i)
      ASSERT_EQ(unit.as<float>()[i], value_of(u, version_)) << "unit " << u << " element " << i;
    store_->release(u);
  }

  std::unique_ptr<Backend> backend_;
  Shards shards_;
  Gathers gathers_;
  Arena arena_;
  std::optional<UnitStore> store_;
  std::unique_ptr<void, Free> memory_;
  int64_t version_ = 0;
};

TEST(UnitStore, GathersWhatIsNoLongerHeld) {
  for (int64_t held = kFewestLayersHeld; held <= kLayers; ++held) {
    SCOPED_TRACE(held);
    Units units(held);
    const int64_t turned = kLayers - held;  // gathered after a turn
    EXPECT_EQ(units.gathers_of_a_pass(), 1 + kLayers + turned);
    EXPECT_EQ(units.gathers_of_a_pass(), 2 * turned) << "the first are still there";
    units.write();
    EXPECT_EQ(units.gathers_of_a_pass(), 1 + kLayers + turned) << "all have changed";
  }
}

}  // namespace
}  // namespace utrain
