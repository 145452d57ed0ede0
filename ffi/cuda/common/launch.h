// SPDX-License-Identifier: Apache-2.0
// Host side of a launch: the device to run on, its size, and errors as sentences.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <initializer_list>

#include "core/backend.h"

namespace grouped::cuda {

// Makes `device` current and restores what was current before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ != cudaSuccess || previous_ == device) return;
    error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_ = cudaSuccess;
  int previous_ = 0;
  bool changed_ = false;
};

inline cudaStream_t stream_of(const Launch& launch) { return static_cast<cudaStream_t>(launch.stream); }

// GROUPED_OK, or a sentence; also clears the runtime's last error, so that no later caller finds ours.
Status launch_status(cudaError_t error, int device);

// Whether the stream is being captured into a graph. Launches are kept plain there: not everyone who takes
// graphs apart knows edges that are not.
bool is_capturing(const Launch& launch);

// Multiprocessors of the device; 1 if it cannot be asked, and then the launch itself will say why.
int num_multiprocessors(int device);

// Bytes that memory gives each multiprocessor in one of its cycles, by the device's own figures, without
// fractions: 18 on an H200, 12 on an H100 by its data sheet. 0 if it cannot be asked.
int memory_bytes_per_cycle(int device);

// major * 10 + minor of the device; 0 if it cannot be asked.
int compute_capability(int device);

// A grid for a strided loop over `tiles`, never empty, never more than `per_multiprocessor` blocks each.
unsigned int strided_grid(int64_t tiles, int per_multiprocessor, int device);

// a * b without overflow, for tile counts that only a strided grid is made of.
inline int64_t saturating_product(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Raises a kernel's dynamic shared memory limit above 48 KB, once for each device; `done` is the kernel's own
// memory of that. Two threads may both do it, which does no harm.
template <typename Kernel>
Status allow_shared_memory(Kernel* kernel, int bytes, int device, std::atomic<uint64_t>& done) {
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((done.load(std::memory_order_relaxed) & bit) != 0) return Status();
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) done.fetch_or(bit, std::memory_order_relaxed);
  return launch_status(error, device);
}

// When a kernel begins: behind everything before it on the stream; or, by programmatic dependent launch,
// beside the one kernel in front of it, which must be ours and have waited for everything before. It then
// waits itself before it reads what that one writes (wait_for_previous() in ptx.cuh).
enum class Begin { kBehind, kBeside };

// Launches `config`, to which it adds.
template <typename Params>
Status launch_config(void (*kernel)(Params), cudaLaunchConfig_t config, Begin begin,
                     std::initializer_list<cudaLaunchAttribute> attributes, const Launch& launch,
                     const Params& params) {
  cudaLaunchAttribute all[4];
  config.numAttrs = 0;
  for (const cudaLaunchAttribute& attribute : attributes) all[config.numAttrs++] = attribute;
  if (begin == Begin::kBeside && !is_capturing(launch)) {
    all[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    all[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  config.attrs = all;
  config.stream = stream_of(launch);
  return launch_status(cudaLaunchKernelEx(&config, kernel, params), launch.device);
}

// Launches a kernel that takes one parameter structure.
template <typename Params>
Status launch_kernel(void (*kernel)(Params), unsigned int grid, dim3 block, size_t shared_bytes,
                     const Launch& launch, const Params& params, Begin begin = Begin::kBehind) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  return launch_config(kernel, config, begin, {}, launch, params);
}

// Clusters of `cluster_size` blocks, one block a multiprocessor, for `tiles` pieces of work.
inline int num_clusters(int64_t tiles, int cluster_size, int device) {
  const int64_t most = num_multiprocessors(device) / cluster_size;
  const int64_t needed = ceil_div(tiles, cluster_size);
  return static_cast<int>(needed < 1 ? 1 : needed < most ? needed : most);
}

// Launches a persistent kernel of one block a multiprocessor, in clusters of `cluster_size` blocks, for
// `tiles` pieces of work.
template <typename Params>
Status launch_clusters(void (*kernel)(Params), int64_t tiles, int cluster_size, dim3 block,
                       size_t shared_bytes, const Launch& launch, const Params& params, Begin begin) {
  const int clusters = num_clusters(tiles, cluster_size, launch.device);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned int>(cluster_size);
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned int>(clusters * cluster_size));
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  return launch_config(kernel, config, begin, {cluster}, launch, params);
}

}  // namespace grouped::cuda
