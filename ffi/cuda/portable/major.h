// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace grouped::cuda {

// Which dimension of a matrix operand is contiguous in memory: the one that is summed over, or the other.
enum class Major { kReduction, kOuter };

}  // namespace grouped::cuda
