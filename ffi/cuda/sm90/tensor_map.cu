// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "sm90/tensor_map.h"

namespace grouped::cuda::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);
constexpr int kMaxRank = 4;

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
  Status failure(GROUPED_INTERNAL, "describing an array to the copy engine failed: " + what);
  std::swap(status_, failure);
}

void TensorMaps::add(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
                     std::initializer_list<int> box, DType dtype, int line_bytes) {
  int64_t strides[kMaxRank];
  int64_t stride = 1;
  for (size_t d = 0; d < dims.size(); ++d) strides[d] = stride *= dims.begin()[d];
  encode(map, data, dims, strides, box, dtype, line_bytes);
}

void TensorMaps::add_panels(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
                            std::initializer_list<int64_t> strides, std::initializer_list<int> box,
                            DType dtype) {
  encode(map, data, dims, strides.begin(), box, dtype, 128);
}

// `strides`: of the dimensions from the second on.
void TensorMaps::encode(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
                        const int64_t* strides, std::initializer_list<int> box, DType dtype, int line_bytes) {
  if (!status_.ok()) return;
  static const Encode encode_tiled = find_encode();
  if (encode_tiled == nullptr) {
    fail("this driver has no cuTensorMapEncodeTiled; CUDA 12.0 or newer is needed.");
    return;
  }
  cuuint64_t sizes[kMaxRank], stride_bytes[kMaxRank];
  cuuint32_t boxes[kMaxRank], steps[kMaxRank];
  const int rank = static_cast<int>(dims.size());
  for (int d = 0; d < rank; ++d) {
    sizes[d] = static_cast<cuuint64_t>(dims.begin()[d]);
    boxes[d] = static_cast<cuuint32_t>(box.begin()[d]);
    steps[d] = 1;
    if (d < rank - 1) stride_bytes[d] = static_cast<cuuint64_t>(strides[d] * size_of(dtype));
  }
  const auto try_encode = [&] {
    return encode_tiled(
        map, type_of(dtype), static_cast<cuuint32_t>(rank), const_cast<void*>(data), sizes, stride_bytes,
        boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        line_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
        pairs_lines_ ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = try_encode();
  // The driver's functions need a context in this thread; only the runtime's make one, and ours may be the
  // first call of a framework's new thread.
  int device = 0;
  if (result == CUDA_ERROR_INVALID_CONTEXT && cudaGetDevice(&device) == cudaSuccess &&
      cudaSetDevice(device) == cudaSuccess) {
    result = try_encode();
  }
  if (result != CUDA_SUCCESS) {
    fail("cuTensorMapEncodeTiled returned CUresult " + std::to_string(static_cast<int>(result)) + ".");
  }
}

}  // namespace grouped::cuda::sm90
