// SPDX-License-Identifier: Apache-2.0
#include "sm90/wgrad.cuh"

namespace grouped::cuda::sm90 {

Status wgrad_f16(const WgradProblem& p, const Config& config, const Launch& launch) {
  return wgrad<__half>(p, config, launch);
}

}  // namespace grouped::cuda::sm90
