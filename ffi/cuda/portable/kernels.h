// SPDX-License-Identifier: Apache-2.0
// The host entries of the portable kernels. The problem has a result to write, its device is current.
#pragma once

#include "core/backend.h"

namespace grouped::cuda {

Status mm_f16(const MmProblem& p, const Launch& launch);
Status mm_bf16(const MmProblem& p, const Launch& launch);
Status mm_f32(const MmProblem& p, const Launch& launch);
Status mm_f64(const MmProblem& p, const Launch& launch);

Status wgrad_f16(const WgradProblem& p, const Launch& launch);
Status wgrad_bf16(const WgradProblem& p, const Launch& launch);
Status wgrad_f32(const WgradProblem& p, const Launch& launch);
Status wgrad_f64(const WgradProblem& p, const Launch& launch);

Status bias_grad(const BiasGradProblem& p, const Launch& launch);
Status activation(const ActivationProblem& p, const Launch& launch);
Status activation_grad(const ActivationGradProblem& p, const Launch& launch);
Status row_scale(const RowScaleProblem& p, const Launch& launch);
Status row_dot(const RowDotProblem& p, const Launch& launch);

}  // namespace grouped::cuda
