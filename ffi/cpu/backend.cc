// SPDX-License-Identifier: Apache-2.0
#include "core/backend.h"

#include "cpu/operations.h"
#include "cpu/workspace.h"

namespace grouped {
namespace {

size_t workspace_size(int32_t, DType, int64_t, int64_t, int64_t groups) {
  return cpu::GroupTables::bytes(groups);
}

}  // namespace

const Backend& cpu_backend() {
  static const Backend backend = {workspace_size, cpu::mm,         cpu::wgrad,
                                  cpu::bias_grad, cpu::activation, cpu::activation_grad,
                                  cpu::row_scale, cpu::row_dot};
  return backend;
}

}  // namespace grouped
