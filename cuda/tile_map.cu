#include "tile_map.h"

#include "core/error.h"
#include "driver_function.h"

namespace utrain::cuda {

CUtensorMap tile_map(const void* x, DType dtype, int64_t n_rows, int64_t n_cols, int64_t ld,
                     int tile_rows) {
  const auto encode = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  ASSERT(encode != nullptr);
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(n_cols), static_cast<cuuint64_t>(n_rows)};
  const cuuint64_t row_bytes[] = {static_cast<cuuint64_t>(ld) * 2};
  const cuuint32_t box[] = {kPanelColumns, static_cast<cuuint32_t>(tile_rows)}, steps[] = {1, 1};
  CUtensorMap map;
  const CUresult result = encode(
      &map,
      dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
      const_cast<void*>(x), sizes, row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  ASSERT(result == CUDA_SUCCESS);
  return map;
}

}  // namespace utrain::cuda
