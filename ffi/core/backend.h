// SPDX-License-Identifier: Apache-2.0
// The face that a device shows to the core: one function an operation, on checked problems.
#pragma once

#include <cstddef>

#include "core/problem.h"

namespace grouped {

struct Launch {
  const grouped_executor* executor;  // CPU; null: the calling thread alone
  void* stream;                      // CUDA
  void* workspace;                   // workspace_size() bytes, 16-byte aligned
  int device;                        // CUDA ordinal
  bool check_sizes;                  // sizes that do not fit are an error, not clamped
};

struct Backend {
  // Bytes of workspace for `op` (GROUPED_OP_*) at any T.
  size_t (*workspace_size)(int32_t op, DType in, int64_t K, int64_t N, int64_t G);
  Status (*mm)(const MmProblem&, const Launch&);
  Status (*wgrad)(const WgradProblem&, const Launch&);
  Status (*bias_grad)(const BiasGradProblem&, const Launch&);
  Status (*activation)(const ActivationProblem&, const Launch&);
  Status (*activation_grad)(const ActivationGradProblem&, const Launch&);
  Status (*row_scale)(const RowScaleProblem&, const Launch&);
  Status (*row_dot)(const RowDotProblem&, const Launch&);
  // Whether this problem uses its workspace; null: perhaps.
  bool (*mm_uses_workspace)(const MmProblem&, int device) = nullptr;
};

const Backend& cpu_backend();
const Backend* cuda_backend();  // null in a build without CUDA

}  // namespace grouped
