// SPDX-License-Identifier: Apache-2.0
#include "sm90/mm.cuh"

namespace grouped::cuda::sm90 {

Status mm_f16(const MmProblem& p, const Config& config, const Launch& launch) {
  return mm<__half>(p, config, launch);
}

}  // namespace grouped::cuda::sm90
