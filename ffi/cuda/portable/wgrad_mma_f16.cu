// SPDX-License-Identifier: Apache-2.0
#include "portable/wgrad_mma.cuh"

namespace grouped::cuda {

Status wgrad_f16(const WgradProblem& p, const Launch& launch) { return wgrad_mma<__half>(p, launch); }

}  // namespace grouped::cuda
