// SPDX-License-Identifier: Apache-2.0
// The CUDA backend. For each operation: the device, the debugging check, what needs no launch, the kernel.
#include "common/launch.h"
#include "core/backend.h"
#include "portable/kernels.h"
#include "portable/offsets.h"

namespace grouped {
namespace {

size_t workspace_size(int32_t, DType, int64_t, int64_t, int64_t G) { return cuda::row_map_size(G); }

// Runs `body` on the launch's device. `is_empty`: no element of a result exists, so nothing may be launched.
template <typename Body>
Status on_device(const GroupSizes& sizes, const Launch& launch, bool is_empty, Body&& body) {
  const cuda::DeviceGuard guard(launch.device);
  if (guard.error() != cudaSuccess) return cuda::launch_status(guard.error(), launch.device);
  if (launch.check_sizes) {
    Status checked = cuda::check_sizes(sizes, launch);
    if (!checked.ok()) return checked;
  }
  return is_empty ? Status() : body();
}

Status mm(const MmProblem& p, const Launch& launch) {
  return on_device(p.sizes, launch, p.T == 0 || p.N == 0, [&] {
    switch (p.in) {
      case DType::kF16:
        return cuda::mm_f16(p, launch);
      case DType::kBF16:
        return cuda::mm_bf16(p, launch);
      case DType::kF32:
        return cuda::mm_f32(p, launch);
      default:
        return cuda::mm_f64(p, launch);
    }
  });
}

Status wgrad(const WgradProblem& p, const Launch& launch) {
  return on_device(p.sizes, launch, p.G == 0 || p.K == 0 || p.N == 0, [&] {
    switch (p.in) {
      case DType::kF16:
        return cuda::wgrad_f16(p, launch);
      case DType::kBF16:
        return cuda::wgrad_bf16(p, launch);
      case DType::kF32:
        return cuda::wgrad_f32(p, launch);
      default:
        return cuda::wgrad_f64(p, launch);
    }
  });
}

Status bias_grad(const BiasGradProblem& p, const Launch& launch) {
  return on_device(p.sizes, launch, p.G == 0 || p.N == 0, [&] { return cuda::bias_grad(p, launch); });
}

Status activation(const ActivationProblem& p, const Launch& launch) {
  return on_device(p.sizes, launch, p.T == 0 || p.F == 0, [&] { return cuda::activation(p, launch); });
}

Status activation_grad(const ActivationGradProblem& p, const Launch& launch) {
  const bool is_empty = p.forward.T == 0 || (p.forward.F == 0 && p.d_row_scale == nullptr);
  return on_device(p.forward.sizes, launch, is_empty, [&] { return cuda::activation_grad(p, launch); });
}

Status row_scale(const RowScaleProblem& p, const Launch& launch) {
  return on_device(p.sizes, launch, p.T == 0 || p.K == 0, [&] { return cuda::row_scale(p, launch); });
}

Status row_dot(const RowDotProblem& p, const Launch& launch) {
  return on_device(p.sizes, launch, p.T == 0, [&] { return cuda::row_dot(p, launch); });
}

}  // namespace

const Backend* cuda_backend() {
  static constexpr Backend backend = {workspace_size,  mm,        wgrad,  bias_grad, activation,
                                      activation_grad, row_scale, row_dot};
  return &backend;
}

}  // namespace grouped
