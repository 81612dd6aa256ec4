// The instructions of Hopper (sm_90a), one function each, that attention is made of: barriers in
// shared memory, tiles that the copy engine brings there, and products of a warpgroup (four warps
// whose first is a multiple of four).
//   Tile: [rows, cols] of a 16-bit T as panels of 64 columns; a panel's row is 128 bytes, its
//   16-byte chunk c of row r at chunk c ^ (r % 8); panels begin at multiples of 1024 bytes.
//   Product: 64 rows, 16 a warp; a lane holds sums as of mma.cuh's C and operands as of its A. It
//   runs on after the call: nobody may touch its sums or operands before wait_for_products.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "tile_map.h"

namespace utrain::cuda {

inline constexpr int kPanelRowBytes = kPanelColumns * 2, kTileAlignment = 1024;

// ---- barriers: a phase ends when `arrivals` have come and all bytes that they announced

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After all barrier_init, before the __syncthreads that lets others use them.
__device__ __forceinline__ void barriers_are_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Arrives when this thread's copy_async so far have.
__device__ __forceinline__ void arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity has ended; of a new barrier, the one before the first is over.
__device__ __forceinline__ void wait_for_phase(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@!over bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- registers: a warpgroup gives back or takes what the launch gave each of its threads

template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- tiles

// Starts a copy of the map's box at (column, row) to a panel; its bytes arrive at the barrier.
__device__ __forceinline__ void copy_panel(uint32_t to, const CUtensorMap& map, int column, int row,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}

// ---- products

// Of an operand [64, 16] or [kN, 16] whose rows are those of a tile, at its first row and column.
__device__ __forceinline__ uint64_t rows_operand(uint32_t place) {
  constexpr uint64_t kOf8Rows = 8 * kPanelRowBytes / 16, kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | kOf8Rows << 32 | uint64_t{1} << 16 | (place & 0x3ffff) >> 4;
}
// Of an operand [16, kN] whose rows are those of a tile.
__device__ __forceinline__ uint64_t columns_operand(uint32_t place, uint32_t panel_bytes) {
  return rows_operand(place) - (uint64_t{1} << 16) + (uint64_t{panel_bytes} / 16 << 16);
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Keeps the compiler from moving what touches c or a across this place.
template <int kN>
__device__ __forceinline__ void pin(float (&c)[1][kN][4]) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(c[0][n][e])::"memory");
  }
}
template <int kK>
__device__ __forceinline__ void pin(uint32_t (&a)[1][kK][4]) {
#pragma unroll
  for (int k = 0; k < kK; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(a[0][k][e])::"memory");
  }
}
// Before the first product whose sums or operands in registers something else wrote: these.
template <class... Registers>
__device__ __forceinline__ void registers_are_ready(Registers&... x) {
  (pin(x), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Until at most kRunning of the committed groups run; c: the sums that have come.
template <int kRunning, class... Sums>
__device__ __forceinline__ void wait_for_products(Sums&... c) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kRunning) : "memory");
  (pin(c), ...);
}

// Sums [64, 8 kN] in float32.
//   multiply_rows<kAdd>  c = or += A B', both operands of rows in shared memory
//   multiply_columns     c += A B, A in registers, B of columns
template <class T, int kN>
struct Products;

// The assembler wants every register by its name: of c[n] and its next neighbours.
#define SUMS_4(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define SUMS_16(c, n) SUMS_4(c, n), SUMS_4(c, n + 1), SUMS_4(c, n + 2), SUMS_4(c, n + 3)
#define SUMS_32(c, n) SUMS_16(c, n), SUMS_16(c, n + 4)
#define SUMS_64(c, n) SUMS_32(c, n), SUMS_32(c, n + 8)
#define NAMES_32                                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                                 \
  NAMES_32                                                                                       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// i0 to i5: the names after the sums'.
#define PRODUCTS(T, type, kN, columns, names, sums, i0, i1, i2, i3, i4, i5)                       \
  template <>                                                                                     \
  struct Products<T, kN> {                                                                        \
    template <bool kAdd>                                                                          \
    __device__ static __forceinline__ void multiply_rows(float (&c)[kN][4], uint64_t a,           \
                                                         uint64_t b) {                            \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " i2                                     \
                   ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type     \
                   " {" names "}, " i0 ", " i1 ", add, 1, 1, 0, 0;\n}"                            \
                   : sums                                                                         \
                   : "l"(a), "l"(b), "n"(int{kAdd}));                                             \
    }                                                                                             \
    __device__ static __forceinline__ void multiply_columns(float (&c)[kN][4],                    \
                                                            const uint32_t (&a)[4], uint64_t b) { \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " i5                                     \
                   ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type     \
                   " {" names "}, {" i0 ", " i1 ", " i2 ", " i3 "}, " i4 ", add, 1, 1, 1;\n}"     \
                   : sums                                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1));                 \
    }                                                                                             \
  };
#define PRODUCTS_64(T, type) \
  PRODUCTS(T, type, 8, "64", NAMES_32, SUMS_32(c, 0), "%32", "%33", "%34", "%35", "%36", "%37")
#define PRODUCTS_128(T, type) \
  PRODUCTS(T, type, 16, "128", NAMES_64, SUMS_64(c, 0), "%64", "%65", "%66", "%67", "%68", "%69")
PRODUCTS_64(__nv_bfloat16, "bf16")
PRODUCTS_64(__half, "f16")
PRODUCTS_128(__nv_bfloat16, "bf16")
PRODUCTS_128(__half, "f16")
#undef SUMS_4
#undef SUMS_16
#undef SUMS_32
#undef SUMS_64
#undef NAMES_32
#undef NAMES_64
#undef PRODUCTS
#undef PRODUCTS_64
#undef PRODUCTS_128

}  // namespace utrain::cuda
