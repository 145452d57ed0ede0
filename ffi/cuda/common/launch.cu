// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "common/launch.h"

namespace grouped::cuda {
namespace {

constexpr int kOldestMajor = 8;  // sm_80: bf16 tensor cores and cp.async

int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess) return value;
  (void)cudaGetLastError();  // a later launch that asks for the last error must not find this one
  return 0;
}

constexpr int kCachedDevices = 64;

// ask() once for each device; 0 is asked again.
template <typename Ask>
int cached(int device, std::atomic<int> (&cache)[kCachedDevices], Ask&& ask) {
  if (device < 0 || device >= kCachedDevices) return ask();
  int value = cache[device].load(std::memory_order_relaxed);
  if (value == 0) {
    value = ask();
    cache[device].store(value, std::memory_order_relaxed);
  }
  return value;
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

bool is_capturing(const Launch& launch) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream_of(launch), &status) == cudaSuccess)
    return status != cudaStreamCaptureStatusNone;
  (void)cudaGetLastError();  // the default stream may not be asked while another one captures
  return true;
}

int num_multiprocessors(int device) {
  static std::atomic<int> cache[kCachedDevices];
  const int count =
      cached(device, cache, [=] { return device_attribute(cudaDevAttrMultiProcessorCount, device); });
  return count > 0 ? count : 1;
}

int memory_bytes_per_cycle(int device) {
  static std::atomic<int> cache[kCachedDevices];
  return cached(device, cache, [=] {
    // Two transfers in each of its cycles; both clocks in kHz.
    const double memory = 2.0 * device_attribute(cudaDevAttrMemoryClockRate, device) *
                          device_attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8;
    const double cycles =
        static_cast<double>(device_attribute(cudaDevAttrClockRate, device)) * num_multiprocessors(device);
    return cycles > 0 ? static_cast<int>(memory / cycles) : 0;
  });
}

int compute_capability(int device) {
  static std::atomic<int> cache[kCachedDevices];
  return cached(device, cache, [=] {
    return device_attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
           device_attribute(cudaDevAttrComputeCapabilityMinor, device);
  });
}

unsigned int strided_grid(int64_t tiles, int per_multiprocessor, int device) {
  const int64_t most = static_cast<int64_t>(num_multiprocessors(device)) * per_multiprocessor;
  return static_cast<unsigned int>(tiles < 1 ? 1 : tiles < most ? tiles : most);
}

}  // namespace grouped::cuda
