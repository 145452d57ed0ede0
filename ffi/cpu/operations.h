// SPDX-License-Identifier: Apache-2.0
// The operations of the CPU backend, as core/backend.h asks for them.
#pragma once

#include "core/backend.h"

namespace grouped::cpu {

Status mm(const MmProblem& problem, const Launch& launch);
Status wgrad(const WgradProblem& problem, const Launch& launch);
Status bias_grad(const BiasGradProblem& problem, const Launch& launch);
Status activation(const ActivationProblem& problem, const Launch& launch);
Status activation_grad(const ActivationGradProblem& problem, const Launch& launch);
Status row_scale(const RowScaleProblem& problem, const Launch& launch);
Status row_dot(const RowDotProblem& problem, const Launch& launch);

}  // namespace grouped::cpu
