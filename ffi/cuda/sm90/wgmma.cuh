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
// Keeps the compiler from moving accumulators across.
template <int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// add false: d = a b. Specialised for each element type and number of columns below.
template <typename T, int kColumns, Major kA, Major kB>
struct Wgmma;

// clang-format off
#define GROUPED_WGMMA_256(TYPE, NAME)                                                                       \
  template <Major kA, Major kB>                                                                             \
  struct Wgmma<TYPE, 256, kA, kB> {                                                                         \
    __device__ __forceinline__ static void run(float (&d)[128], uint64_t a, uint64_t b, bool add) {         \
      asm volatile(                                                                                         \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                                     \
          "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " {"                                 \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "      \
          "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "      \
          "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "      \
          "%56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, "      \
          "%74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "      \
          "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, "        \
          "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, "      \
          "%123, %124, %125, %126, %127"                                                                    \
          "}, %128, %129, p, 1, 1, %131, %132;\n}\n"                                                        \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),             \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),         \
            "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),      \
            "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),      \
            "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),      \
            "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),      \
            "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),      \
            "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),      \
            "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),      \
            "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]),      \
            "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]),      \
            "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),      \
            "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]),      \
            "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]),      \
            "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),               \
            "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]),             \
            "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]),             \
            "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]),             \
            "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])              \
          : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kA == Major::kOuter ? 1 : 0),                   \
            "n"(kB == Major::kOuter ? 1 : 0));                                                              \
    }                                                                                                       \
  };

#define GROUPED_WGMMA_128(TYPE, NAME)                                                                       \
  template <Major kA, Major kB>                                                                             \
  struct Wgmma<TYPE, 128, kA, kB> {                                                                         \
    __device__ __forceinline__ static void run(float (&d)[64], uint64_t a, uint64_t b, bool add) {          \
      asm volatile(                                                                                         \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                                      \
          "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {"                                 \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "      \
          "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "      \
          "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "      \
          "%56, %57, %58, %59, %60, %61, %62, %63"                                                          \
          "}, %64, %65, p, 1, 1, %67, %68;\n}\n"                                                            \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),             \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),         \
            "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),      \
            "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),      \
            "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),      \
            "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),      \
            "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),      \
            "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),      \
            "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),      \
            "+f"(d[63])                                                                                     \
          : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kA == Major::kOuter ? 1 : 0),                   \
            "n"(kB == Major::kOuter ? 1 : 0));                                                              \
    }                                                                                                       \
  };

// clang-format on
GROUPED_WGMMA_256(__nv_bfloat16, "bf16")
GROUPED_WGMMA_256(__half, "f16")
GROUPED_WGMMA_128(__nv_bfloat16, "bf16")
GROUPED_WGMMA_128(__half, "f16")

#undef GROUPED_WGMMA_256
#undef GROUPED_WGMMA_128

}  // namespace grouped::cuda::sm90
