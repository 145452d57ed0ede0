// SPDX-License-Identifier: Apache-2.0
// Environment switches, read once when the library is loaded. None changes a result.
#pragma once

namespace grouped {

bool check_switch();  // GROUPED_CHECK=1: sizes that do not fit are an error on CUDA too; waits for the device
bool log_switch();    // GROUPED_LOG=1: the choice made, once per shape, to stderr

// GROUPED_TEST_KERNELS, for tests alone: kernels that must run where they can, whatever would be chosen. The
// portable ones are another family: their bits may differ. The Hopper configurations agree in every bit.
enum class TestKernels { kAny, kPortable, kTurns, kBuffers, kShare, kLines };
TestKernels test_kernels();

}  // namespace grouped
