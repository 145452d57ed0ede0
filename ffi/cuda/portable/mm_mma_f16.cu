// SPDX-License-Identifier: Apache-2.0
#include "portable/mm_mma.cuh"

namespace grouped::cuda {

Status mm_f16(const MmProblem& p, const Launch& launch) { return mm_mma<__half>(p, launch); }

}  // namespace grouped::cuda
