// SPDX-License-Identifier: Apache-2.0
#include "sm90/mm.cuh"

namespace grouped::cuda::sm90 {

Status mm_bf16(const MmProblem& p, const Config& config, const Launch& launch) {
  return mm<__nv_bfloat16>(p, config, launch);
}

}  // namespace grouped::cuda::sm90
