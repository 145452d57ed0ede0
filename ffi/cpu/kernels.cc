// SPDX-License-Identifier: Apache-2.0
#include "cpu/kernels.h"

#include <atomic>

namespace grouped::cpu {
namespace {

// Also asks whether the operating system saves the registers.
bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && cpu_has(Isa::kAvx2);
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kBaseline:
      return true;
  }
#endif
  return isa == Isa::kBaseline;
}

const Kernels* best() {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (const Kernels* found = kernels_of(isa)) return found;
  }
  return &baseline::kKernels;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels{best()};
  return kernels;
}

}  // namespace

const Kernels* kernels_of(Isa isa) {
  if (!cpu_has(isa)) return nullptr;
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return &avx512::kKernels;
  if (isa == Isa::kAvx2) return &avx2::kKernels;
#endif
  return &baseline::kKernels;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

bool force_isa(Isa isa) {
  const Kernels* found = kernels_of(isa);
  if (found) current().store(found, std::memory_order_relaxed);
  return found != nullptr;
}

}  // namespace grouped::cpu
