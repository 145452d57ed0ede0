// SPDX-License-Identifier: Apache-2.0
// Argument structures of the C interface to checked problems. `problem` may be null: the check alone.
#pragma once

#include "core/problem.h"
#include "core/rules.h"

namespace grouped {

Status make_problem(const grouped_mm_args& args, MmProblem* problem, Checked* found);
Status make_problem(const grouped_wgrad_args& args, WgradProblem* problem, Checked* found);
Status make_problem(const grouped_bias_grad_args& args, BiasGradProblem* problem, Checked* found);
Status make_problem(const grouped_activation_args& args, ActivationProblem* problem, Checked* found);
Status make_problem(const grouped_activation_grad_args& args, ActivationGradProblem* problem, Checked* found);
Status make_problem(const grouped_row_scale_args& args, RowScaleProblem* problem, Checked* found);
Status make_problem(const grouped_row_dot_args& args, RowDotProblem* problem, Checked* found);
Status check_linear(const grouped_linear_args& args);

}  // namespace grouped
