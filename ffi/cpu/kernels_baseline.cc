// SPDX-License-Identifier: Apache-2.0
// Any CPU of the architecture.
#include "cpu/kernels_common.h"

#define GROUPED_CPU_NAMESPACE baseline
#include "cpu/kernels/kernels.inc"
