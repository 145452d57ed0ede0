// SPDX-License-Identifier: Apache-2.0
#include "sm90/wgrad.cuh"

namespace grouped::cuda::sm90 {

Status wgrad_bf16(const WgradProblem& p, const Config& config, const Launch& launch) {
  return wgrad<__nv_bfloat16>(p, config, launch);
}

}  // namespace grouped::cuda::sm90

extern "C" __attribute__((visibility("default"))) int grouped_trace_wgrad(void* to, int clear) {
  using namespace grouped::cuda::sm90;
  void* from; cudaGetSymbolAddress(&from, grouped_trace_memory);
  if (clear) return cudaMemset(from, 0, sizeof(grouped_trace_memory));
  return cudaMemcpy(to, from, sizeof(grouped_trace_memory), cudaMemcpyDeviceToHost);
}
