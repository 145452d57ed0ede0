// SPDX-License-Identifier: Apache-2.0
// What is compiled once for each instruction set: the body of each operation's task.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "cpu/tiling.h"

namespace grouped::cpu {

struct Kernels {
  void (*mm)(const MmProblem&, const Tile&);  // tile.row is a row of x
  // `first_row`, `rows`: the group's rows. The tile lies in the group's result as it is stored.
  void (*wgrad)(const WgradProblem&, int64_t first_row, int64_t rows, const Tile&);
  void (*bias_grad)(const BiasGradProblem&, int64_t first_row, int64_t rows, const Tile&);

  // Rows [begin, end), none of them in the tail.
  void (*activation)(const ActivationProblem&, int64_t begin, int64_t end);
  void (*activation_grad)(const ActivationGradProblem&, int64_t begin, int64_t end);
  void (*row_scale)(const RowScaleProblem&, int64_t begin, int64_t end);
  void (*row_dot)(const RowDotProblem&, int64_t group, int64_t begin, int64_t end);  // rows of one group
};

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best of this CPU.
const Kernels& kernels();

// Null where the CPU or the build lacks it.
const Kernels* kernels_of(Isa isa);

// Makes kernels() answer with `isa`, for tests; false, and no change, where it is missing.
bool force_isa(Isa isa);

namespace baseline {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

}  // namespace grouped::cpu
