// SPDX-License-Identifier: Apache-2.0
// The host entries of the Hopper kernels, for problems that can_take() (heuristic.h) accepts. Their device is
// current.
#pragma once

#include "core/backend.h"
#include "sm90/heuristic.h"

namespace grouped::cuda::sm90 {

Status mm_f16(const MmProblem& p, const Config& config, const Launch& launch);
Status mm_bf16(const MmProblem& p, const Config& config, const Launch& launch);
Status wgrad_f16(const WgradProblem& p, const Config& config, const Launch& launch);
Status wgrad_bf16(const WgradProblem& p, const Config& config, const Launch& launch);

}  // namespace grouped::cuda::sm90
