// SPDX-License-Identifier: Apache-2.0
// x86-64 with AVX2, FMA and F16C.
#include "cpu/kernels_common.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif

#define GROUPED_CPU_AVX2
#define GROUPED_CPU_NAMESPACE avx2
#include "cpu/kernels/kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
