// SPDX-License-Identifier: Apache-2.0
// wgmma: d[64,N] += a[64,16] b[16,N] by one warpgroup, both operands in shared memory with 128-byte swizzle.
//
// Operand tiles in shared memory, as the bulk tensor copy lays them out (1024-byte aligned):
//   Major::kReduction   [outer][64 of R]: lines of 128 bytes, 8 lines to a swizzle atom of 1024 bytes.
//                       16 of R further: 32 bytes.
//   Major::kOuter       panels of 64 outer elements, each [64 of R][64 outer]: lines of 128 bytes likewise.
//                       16 of R further: 16 lines, 2048 bytes. The next panel: 8192 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "portable/major.h"

namespace grouped::cuda::sm90 {

inline constexpr uint32_t kLineBytes = 128;
inline constexpr uint32_t kAtomBytes = 8 * kLineBytes;
inline constexpr uint32_t kPanelBytes = 64 * kLineBytes;

// Bytes between steps of 16 along the reduction.
template <Major kMajor>
inline constexpr uint32_t kStepBytes = kMajor == Major::kReduction ? 32 : 16 * kLineBytes;

// The matrix descriptor of an operand at shared address 0: strides in units of 16 bytes, swizzle mode 1 = 128
// bytes. The stride at bit 16 counts between panels and is not read for Major::kReduction.
template <Major kMajor>
inline constexpr uint64_t kDescriptor = uint64_t{1} << 62 | uint64_t{kAtomBytes / 16} << 32 |
                                        uint64_t{kMajor == Major::kOuter ? kPanelBytes / 16 : 1} << 16;

// In a cluster the bits of a shared address above the 18 of the offset name the block.
template <Major kMajor>
__device__ __forceinline__ uint64_t descriptor(uint32_t shared) {
  return kDescriptor<kMajor> | (shared & 0x3ffff) >> 4;
}

// Registers that a wgmma under way may write are ready for it, and its operands too.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving the first kUsed accumulators across.
template <int kUsed, int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kUsed; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d (+)= a b for kColumns columns, in the first kColumns / 2 registers of d; add false: d = a b. Specialised
// below for each element type and width.
template <typename T, int kColumns, Major kA, Major kB>
struct Wgmma;

// clang-format off
// The registers of 16 columns, by number, and the operands that they are.
#define GROUPED_REGISTERS_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define GROUPED_REGISTERS_1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define GROUPED_REGISTERS_2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define GROUPED_REGISTERS_3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define GROUPED_REGISTERS_4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define GROUPED_REGISTERS_5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define GROUPED_REGISTERS_6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define GROUPED_REGISTERS_7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define GROUPED_REGISTERS_8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define GROUPED_REGISTERS_9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define GROUPED_REGISTERS_10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define GROUPED_REGISTERS_11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define GROUPED_REGISTERS_12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define GROUPED_REGISTERS_13 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define GROUPED_REGISTERS_14 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define GROUPED_REGISTERS_15 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define GROUPED_OPERANDS(D, I)                                                                              \
  "+f"(D[I]), "+f"(D[I + 1]), "+f"(D[I + 2]), "+f"(D[I + 3]), "+f"(D[I + 4]), "+f"(D[I + 5]),               \
  "+f"(D[I + 6]), "+f"(D[I + 7])
#define GROUPED_REGISTERS_UP_TO_16 GROUPED_REGISTERS_0
#define GROUPED_OPERANDS_UP_TO_16(D) GROUPED_OPERANDS(D, 0)
#define GROUPED_REGISTERS_UP_TO_32 GROUPED_REGISTERS_UP_TO_16 GROUPED_REGISTERS_1
#define GROUPED_OPERANDS_UP_TO_32(D) GROUPED_OPERANDS_UP_TO_16(D), GROUPED_OPERANDS(D, 8)
#define GROUPED_REGISTERS_UP_TO_48 GROUPED_REGISTERS_UP_TO_32 GROUPED_REGISTERS_2
#define GROUPED_OPERANDS_UP_TO_48(D) GROUPED_OPERANDS_UP_TO_32(D), GROUPED_OPERANDS(D, 16)
#define GROUPED_REGISTERS_UP_TO_64 GROUPED_REGISTERS_UP_TO_48 GROUPED_REGISTERS_3
#define GROUPED_OPERANDS_UP_TO_64(D) GROUPED_OPERANDS_UP_TO_48(D), GROUPED_OPERANDS(D, 24)
#define GROUPED_REGISTERS_UP_TO_80 GROUPED_REGISTERS_UP_TO_64 GROUPED_REGISTERS_4
#define GROUPED_OPERANDS_UP_TO_80(D) GROUPED_OPERANDS_UP_TO_64(D), GROUPED_OPERANDS(D, 32)
#define GROUPED_REGISTERS_UP_TO_96 GROUPED_REGISTERS_UP_TO_80 GROUPED_REGISTERS_5
#define GROUPED_OPERANDS_UP_TO_96(D) GROUPED_OPERANDS_UP_TO_80(D), GROUPED_OPERANDS(D, 40)
#define GROUPED_REGISTERS_UP_TO_112 GROUPED_REGISTERS_UP_TO_96 GROUPED_REGISTERS_6
#define GROUPED_OPERANDS_UP_TO_112(D) GROUPED_OPERANDS_UP_TO_96(D), GROUPED_OPERANDS(D, 48)
#define GROUPED_REGISTERS_UP_TO_128 GROUPED_REGISTERS_UP_TO_112 GROUPED_REGISTERS_7
#define GROUPED_OPERANDS_UP_TO_128(D) GROUPED_OPERANDS_UP_TO_112(D), GROUPED_OPERANDS(D, 56)
#define GROUPED_REGISTERS_UP_TO_144 GROUPED_REGISTERS_UP_TO_128 GROUPED_REGISTERS_8
#define GROUPED_OPERANDS_UP_TO_144(D) GROUPED_OPERANDS_UP_TO_128(D), GROUPED_OPERANDS(D, 64)
#define GROUPED_REGISTERS_UP_TO_160 GROUPED_REGISTERS_UP_TO_144 GROUPED_REGISTERS_9
#define GROUPED_OPERANDS_UP_TO_160(D) GROUPED_OPERANDS_UP_TO_144(D), GROUPED_OPERANDS(D, 72)
#define GROUPED_REGISTERS_UP_TO_176 GROUPED_REGISTERS_UP_TO_160 GROUPED_REGISTERS_10
#define GROUPED_OPERANDS_UP_TO_176(D) GROUPED_OPERANDS_UP_TO_160(D), GROUPED_OPERANDS(D, 80)
#define GROUPED_REGISTERS_UP_TO_192 GROUPED_REGISTERS_UP_TO_176 GROUPED_REGISTERS_11
#define GROUPED_OPERANDS_UP_TO_192(D) GROUPED_OPERANDS_UP_TO_176(D), GROUPED_OPERANDS(D, 88)
#define GROUPED_REGISTERS_UP_TO_208 GROUPED_REGISTERS_UP_TO_192 GROUPED_REGISTERS_12
#define GROUPED_OPERANDS_UP_TO_208(D) GROUPED_OPERANDS_UP_TO_192(D), GROUPED_OPERANDS(D, 96)
#define GROUPED_REGISTERS_UP_TO_224 GROUPED_REGISTERS_UP_TO_208 GROUPED_REGISTERS_13
#define GROUPED_OPERANDS_UP_TO_224(D) GROUPED_OPERANDS_UP_TO_208(D), GROUPED_OPERANDS(D, 104)
#define GROUPED_REGISTERS_UP_TO_240 GROUPED_REGISTERS_UP_TO_224 GROUPED_REGISTERS_14
#define GROUPED_OPERANDS_UP_TO_240(D) GROUPED_OPERANDS_UP_TO_224(D), GROUPED_OPERANDS(D, 112)
#define GROUPED_REGISTERS_UP_TO_256 GROUPED_REGISTERS_UP_TO_240 GROUPED_REGISTERS_15
#define GROUPED_OPERANDS_UP_TO_256(D) GROUPED_OPERANDS_UP_TO_240(D), GROUPED_OPERANDS(D, 120)

// A to KB: the numbers of the operands behind the registers.
#define GROUPED_WGMMA(TYPE, NAME, COLUMNS, A, B, ADD, KA, KB)                                               \
  template <Major kA, Major kB>                                                                             \
  struct Wgmma<TYPE, COLUMNS, kA, kB> {                                                                     \
    template <int kCount>                                                                                   \
    __device__ __forceinline__ static void run(float (&d)[kCount], uint64_t a, uint64_t b, bool add) {      \
      static_assert(kCount >= COLUMNS / 2, "a thread holds half of its warpgroup's columns");               \
      asm volatile(                                                                                         \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADD ", 0;\n"                                                \
          "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." NAME "." NAME " {"                        \
          GROUPED_REGISTERS_UP_TO_##COLUMNS                                                                 \
          "}, %" #A ", %" #B ", p, 1, 1, %" #KA ", %" #KB ";\n}\n"                                          \
          : GROUPED_OPERANDS_UP_TO_##COLUMNS(d)                                                             \
          : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kA == Major::kOuter ? 1 : 0),                   \
            "n"(kB == Major::kOuter ? 1 : 0));                                                              \
    }                                                                                                       \
  };
#define GROUPED_WGMMA_WIDTHS(TYPE, NAME) \
  GROUPED_WGMMA(TYPE, NAME, 16, 8, 9, 10, 11, 12) \
  GROUPED_WGMMA(TYPE, NAME, 32, 16, 17, 18, 19, 20) \
  GROUPED_WGMMA(TYPE, NAME, 48, 24, 25, 26, 27, 28) \
  GROUPED_WGMMA(TYPE, NAME, 64, 32, 33, 34, 35, 36) \
  GROUPED_WGMMA(TYPE, NAME, 80, 40, 41, 42, 43, 44) \
  GROUPED_WGMMA(TYPE, NAME, 96, 48, 49, 50, 51, 52) \
  GROUPED_WGMMA(TYPE, NAME, 112, 56, 57, 58, 59, 60) \
  GROUPED_WGMMA(TYPE, NAME, 128, 64, 65, 66, 67, 68) \
  GROUPED_WGMMA(TYPE, NAME, 144, 72, 73, 74, 75, 76) \
  GROUPED_WGMMA(TYPE, NAME, 160, 80, 81, 82, 83, 84) \
  GROUPED_WGMMA(TYPE, NAME, 176, 88, 89, 90, 91, 92) \
  GROUPED_WGMMA(TYPE, NAME, 192, 96, 97, 98, 99, 100) \
  GROUPED_WGMMA(TYPE, NAME, 208, 104, 105, 106, 107, 108) \
  GROUPED_WGMMA(TYPE, NAME, 224, 112, 113, 114, 115, 116) \
  GROUPED_WGMMA(TYPE, NAME, 240, 120, 121, 122, 123, 124) \
  GROUPED_WGMMA(TYPE, NAME, 256, 128, 129, 130, 131, 132)

// clang-format on
GROUPED_WGMMA_WIDTHS(__nv_bfloat16, "bf16")
GROUPED_WGMMA_WIDTHS(__half, "f16")

#undef GROUPED_WGMMA_WIDTHS
#undef GROUPED_WGMMA
#undef GROUPED_OPERANDS_UP_TO_32
#undef GROUPED_REGISTERS_UP_TO_16
#undef GROUPED_OPERANDS_UP_TO_16
#undef GROUPED_REGISTERS_0
#undef GROUPED_REGISTERS_UP_TO_32
#undef GROUPED_OPERANDS_UP_TO_32
#undef GROUPED_REGISTERS_1
#undef GROUPED_REGISTERS_UP_TO_48
#undef GROUPED_OPERANDS_UP_TO_48
#undef GROUPED_REGISTERS_2
#undef GROUPED_REGISTERS_UP_TO_64
#undef GROUPED_OPERANDS_UP_TO_64
#undef GROUPED_REGISTERS_3
#undef GROUPED_REGISTERS_UP_TO_80
#undef GROUPED_OPERANDS_UP_TO_80
#undef GROUPED_REGISTERS_4
#undef GROUPED_REGISTERS_UP_TO_96
#undef GROUPED_OPERANDS_UP_TO_96
#undef GROUPED_REGISTERS_5
#undef GROUPED_REGISTERS_UP_TO_112
#undef GROUPED_OPERANDS_UP_TO_112
#undef GROUPED_REGISTERS_6
#undef GROUPED_REGISTERS_UP_TO_128
#undef GROUPED_OPERANDS_UP_TO_128
#undef GROUPED_REGISTERS_7
#undef GROUPED_REGISTERS_UP_TO_144
#undef GROUPED_OPERANDS_UP_TO_144
#undef GROUPED_REGISTERS_8
#undef GROUPED_REGISTERS_UP_TO_160
#undef GROUPED_OPERANDS_UP_TO_160
#undef GROUPED_REGISTERS_9
#undef GROUPED_REGISTERS_UP_TO_176
#undef GROUPED_OPERANDS_UP_TO_176
#undef GROUPED_REGISTERS_10
#undef GROUPED_REGISTERS_UP_TO_192
#undef GROUPED_OPERANDS_UP_TO_192
#undef GROUPED_REGISTERS_11
#undef GROUPED_REGISTERS_UP_TO_208
#undef GROUPED_OPERANDS_UP_TO_208
#undef GROUPED_REGISTERS_12
#undef GROUPED_REGISTERS_UP_TO_224
#undef GROUPED_OPERANDS_UP_TO_224
#undef GROUPED_REGISTERS_13
#undef GROUPED_REGISTERS_UP_TO_240
#undef GROUPED_OPERANDS_UP_TO_240
#undef GROUPED_REGISTERS_14
#undef GROUPED_REGISTERS_UP_TO_256
#undef GROUPED_OPERANDS_UP_TO_256
#undef GROUPED_REGISTERS_15
#undef GROUPED_OPERANDS

}  // namespace grouped::cuda::sm90
