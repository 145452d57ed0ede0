// SPDX-License-Identifier: Apache-2.0
// The CUDA backend. For each operation: the device, the debugging check, what needs no launch, the kernel.

#include "common/launch.h"
#include "core/backend.h"
#include "core/log.h"
#include "core/switches.h"
#include "portable/kernels.h"
#include "portable/offsets.h"
#include "sm90/halves.h"
#include "sm90/heuristic.h"
#include "sm90/kernels.h"

namespace grouped {
namespace {

// Which kernels will run is not known before the addresses are. Some use both parts; those that need only the
// end of the last group, none.
size_t workspace_size(int32_t op, DType, int64_t, int64_t, int64_t G) {
  if (op == GROUPED_OP_ACTIVATION || op == GROUPED_OP_ACTIVATION_GRAD || op == GROUPED_OP_ROW_SCALE) return 0;
  return cuda::sm90::counters_offset(G) + sizeof(cuda::sm90::PieceCounters);
}

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

// GROUPED_LOG=1: the kernels chosen for these K, N and G.
void log_choice(const char* operation, int64_t K, int64_t N, int64_t G, bool is_gkn,
                const std::string& choice) {
  if (!log_switch()) return;
  log_once(std::string(operation) + (is_gkn ? " [G,K,N]" : " [G,N,K]") + " K=" + std::to_string(K) +
           " N=" + std::to_string(N) + " G=" + std::to_string(G) + ": " + choice);
}

template <typename Problem>
bool use_sm90(const Problem& p, int device) {
  return cuda::sm90::can_take(p, cuda::compute_capability(device)) &&
         test_kernels() != TestKernels::kPortable;
}

// Tests force a shape of tiles, and what a configuration can be besides goes along: each way of giving out
// work runs with one of them. With none do clusters take turns, because small problems choose that unforced.
cuda::sm90::Config config_of(const MmProblem& p, int device) {
  cuda::sm90::Config config = cuda::sm90::mm_config(p.T, p.K, p.N, p.G, cuda::memory_bytes_per_cycle(device));
  if (test_kernels() == TestKernels::kAny) return config;
  config.takes_turns = test_kernels() != TestKernels::kShare;
  config.in_order = test_kernels() == TestKernels::kTurns;
  config.on_demand = true;
  return config;
}
cuda::sm90::Config config_of(const WgradProblem& p, int device) {
  cuda::sm90::Config config =
      cuda::sm90::wgrad_config(p.T, p.K, p.N, p.G, p.accumulate, cuda::memory_bytes_per_cycle(device));
  if (test_kernels() == TestKernels::kAny) return config;
  config.sends_lines =
      test_kernels() == TestKernels::kLines && cuda::sm90::can_send_lines(p.K, p.N, p.accumulate);
  config.takes_turns = test_kernels() == TestKernels::kTurns || test_kernels() == TestKernels::kBuffers;
  config.large_buffers = test_kernels() == TestKernels::kBuffers;
  config.on_demand = true;
  config.asks_ahead = test_kernels() != TestKernels::kTurns;
  config.from_both_ends = test_kernels() == TestKernels::kShare;
  return config;
}

Status mm(const MmProblem& p, const Launch& launch) {
  return on_device(p.sizes, launch, p.T == 0 || p.N == 0, [&] {
    if (use_sm90(p, launch.device)) {
      const cuda::sm90::Config config = config_of(p, launch.device);
      log_choice("grouped_mm", p.K, p.N, p.G, p.weight_is_gkn, to_string(config));
      return p.in == DType::kF16 ? cuda::sm90::mm_f16(p, config, launch)
                                 : cuda::sm90::mm_bf16(p, config, launch);
    }
    log_choice("grouped_mm", p.K, p.N, p.G, p.weight_is_gkn, "portable");
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

// The portable kernels keep their offsets there.
bool mm_uses_workspace(const MmProblem& p, int device) {
  return !use_sm90(p, device) || config_of(p, device).on_demand;
}

Status wgrad(const WgradProblem& p, const Launch& launch) {
  return on_device(p.sizes, launch, p.G == 0 || p.K == 0 || p.N == 0, [&] {
    if (use_sm90(p, launch.device)) {
      const cuda::sm90::Config config = config_of(p, launch.device);
      log_choice("grouped_wgrad", p.K, p.N, p.G, p.out_is_gkn, to_string(config));
      return p.in == DType::kF16 ? cuda::sm90::wgrad_f16(p, config, launch)
                                 : cuda::sm90::wgrad_bf16(p, config, launch);
    }
    log_choice("grouped_wgrad", p.K, p.N, p.G, p.out_is_gkn, "portable");
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
  static constexpr Backend backend = {workspace_size,  mm,        wgrad,   bias_grad,        activation,
                                      activation_grad, row_scale, row_dot, mm_uses_workspace};
  return &backend;
}

}  // namespace grouped
