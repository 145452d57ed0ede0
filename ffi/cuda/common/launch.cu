// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "common/launch.h"

namespace grouped::cuda {
namespace {

constexpr int kOldestMajor = 8;  // sm_80: bf16 tensor cores and cp.async

int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

}  // namespace

Status launch_status(cudaError_t error, int device) {
  if (error == cudaSuccess) return Status();
  (void)cudaGetLastError();
  const std::string cause = std::string("launching a CUDA kernel failed: ") + cudaGetErrorString(error);
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor, device);
  if (major > 0 && major < kOldestMajor) {
    const int minor = device_attribute(cudaDevAttrComputeCapabilityMinor, device);
    return Status(GROUPED_INTERNAL, cause + ". CUDA device " + std::to_string(device) +
                                        " has compute capability " + std::to_string(major) + "." +
                                        std::to_string(minor) +
                                        "; this build needs compute capability 8.0 or newer.");
  }
  return Status(GROUPED_INTERNAL, cause);
}

int num_multiprocessors(int device) {
  constexpr int kCached = 64;
  static std::atomic<int> cache[kCached];
  if (device < 0 || device >= kCached) {
    const int uncached = device_attribute(cudaDevAttrMultiProcessorCount, device);
    return uncached > 0 ? uncached : 1;
  }
  int count = cache[device].load(std::memory_order_relaxed);
  if (count == 0) {
    count = device_attribute(cudaDevAttrMultiProcessorCount, device);
    if (count <= 0) return 1;
    cache[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

unsigned int strided_grid(int64_t tiles, int per_multiprocessor, int device) {
  const int64_t most = static_cast<int64_t>(num_multiprocessors(device)) * per_multiprocessor;
  return static_cast<unsigned int>(tiles < 1 ? 1 : tiles < most ? tiles : most);
}

}  // namespace grouped::cuda
