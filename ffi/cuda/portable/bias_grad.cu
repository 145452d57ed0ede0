// SPDX-License-Identifier: Apache-2.0
// out[g] (+)= sum of dy over the rows of group g. A block sums 64 columns of one group: 8 partial sums a
// column, over rows 0, 8, 16, ... of the group, over rows 1, 9, 17, ..., and so on, then the eight as a fixed
// tree. So the order depends on the group's own rows alone.
#include "common/convert.cuh"
#include "common/launch.h"
#include "portable/kernels.h"
#include "portable/schedule.cuh"

namespace grouped::cuda {
namespace {

constexpr int kColumns = 64;
constexpr int kPartials = 8;
constexpr int kUnroll = 8;  // rows in flight in each thread

template <typename T>
struct BiasGradParams {
  const T* dy;          // [T, N]
  EitherOutput<T> out;  // [G, N]
  int64_t N;
  RowMap map;
  bool accumulate;
};

template <typename T>
__global__ void __launch_bounds__(kColumns* kPartials)
    bias_grad_kernel(const __grid_constant__ BiasGradParams<T> p) {
  using A = Accumulator<T>;
  __shared__ A partials[kPartials][kColumns];
  const int partial = threadIdx.x / kColumns;
  const int64_t strips = (p.N + kColumns - 1) / kColumns;
  for (int64_t id = blockIdx.x; id < p.map.G * strips; id += gridDim.x) {
    const int64_t group = id / strips;
    const int64_t column = (id - group * strips) * kColumns + threadIdx.x % kColumns;
    const int64_t begin = p.map.offsets[group];
    const int64_t end = p.map.offsets[group + 1];
    if (p.accumulate && begin == end) continue;  // unchanged to the bit, -0 too

    A sum = 0;
    if (column < p.N) {
      int64_t row = begin + partial;
      for (; row + (kUnroll - 1) * kPartials < end; row += kUnroll * kPartials) {
        A values[kUnroll];
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) values[i] = widen(p.dy[(row + i * kPartials) * p.N + column]);
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) sum = add(sum, values[i]);
      }
      for (; row < end; row += kPartials) sum = add(sum, widen(p.dy[row * p.N + column]));
    }
    partials[partial][threadIdx.x % kColumns] = sum;
#pragma unroll
    for (int half = kPartials / 2; half > 0; half /= 2) {
      __syncthreads();
      if (partial < half) {
        sum = add(sum, partials[partial + half][threadIdx.x % kColumns]);
        partials[partial][threadIdx.x % kColumns] = sum;
      }
    }
    if (partial == 0 && column < p.N) {
      const int64_t at = group * p.N + column;
      p.out.store(at, p.accumulate ? add(p.out[at], sum) : sum);
    }
    __syncthreads();  // the next strip writes the partials again
  }
}

}  // namespace

Status bias_grad(const BiasGradProblem& p, const Launch& launch) {
  RowMap map;
  const Status mapped = make_row_map(p.sizes, 1, launch, &map);
  if (!mapped.ok()) return mapped;
  const unsigned int grid = strided_grid(saturating_product(p.G, ceil_div(p.N, kColumns)), 4, launch.device);
  return with_type(p.in, [&](auto element) {
    using T = decltype(element);
    const BiasGradParams<T> params = {static_cast<const T*>(p.dy), either_output<T>(p.out, p.out_dtype), p.N,
                                      map, p.accumulate};
    return launch_kernel(bias_grad_kernel<T>, grid, dim3(kColumns * kPartials), 0, launch, params);
  });
}

}  // namespace grouped::cuda
