// SPDX-License-Identifier: Apache-2.0
#include "sm90/mm.cuh"

namespace grouped::cuda::sm90 {

Status mm_bf16(const MmProblem& p, const Config& config, const Launch& launch) {
  return mm<__nv_bfloat16>(p, config, launch);
}

}  // namespace grouped::cuda::sm90

extern "C" __attribute__((visibility("default"))) int grouped_trace_mm(void* to, int clear) {
  using namespace grouped::cuda::sm90;
  void* from; cudaGetSymbolAddress(&from, grouped_trace_memory);
  if (clear) return cudaMemset(from, 0, sizeof(grouped_trace_memory));
  return cudaMemcpy(to, from, sizeof(grouped_trace_memory), cudaMemcpyDeviceToHost);
}
