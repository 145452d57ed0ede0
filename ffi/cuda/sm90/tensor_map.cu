// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "sm90/tensor_map.h"

namespace grouped::cuda::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: nothing links libcuda, so importing needs no driver.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<Encode>(function);
}

CUtensorMapDataType type_of(DType dtype) {
  return dtype == DType::kF16    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
         : dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

}  // namespace

void TensorMaps::fail(const std::string& what) {
  Status failure(GROUPED_INTERNAL, "grouped_mm: " + what);
  std::swap(status_, failure);
}

void TensorMaps::add(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
                     std::initializer_list<int> box, DType dtype) {
  if (!status_.ok()) return;
  static const Encode encode = find_encode();
  if (encode == nullptr) {
    fail("this driver has no cuTensorMapEncodeTiled; CUDA 12.0 or newer is needed.");
    return;
  }
  constexpr int kMaxRank = 3;
  cuuint64_t sizes[kMaxRank], strides[kMaxRank];
  cuuint32_t boxes[kMaxRank], steps[kMaxRank];
  cuuint64_t stride = static_cast<cuuint64_t>(size_of(dtype));
  const int rank = static_cast<int>(dims.size());
  for (int d = 0; d < rank; ++d) {
    sizes[d] = static_cast<cuuint64_t>(dims.begin()[d]);
    boxes[d] = static_cast<cuuint32_t>(box.begin()[d]);
    steps[d] = 1;
    stride *= sizes[d];
    strides[d] = stride;  // of dimension d + 1; the last is not read
  }
  const CUresult result =
      encode(map, type_of(dtype), static_cast<cuuint32_t>(rank), const_cast<void*>(data), sizes, strides,
             boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail("cuTensorMapEncodeTiled failed with CUresult " + std::to_string(static_cast<int>(result)) + ".");
  }
}

}  // namespace grouped::cuda::sm90
