// SPDX-License-Identifier: Apache-2.0
// out[t] = round(a[t] . b[t] + dy[t] . bias[g]): one warp a row, first along K and then along N into the same
// 32 sums.
#include "core/math.h"
#include "portable/rowwise.cuh"

namespace grouped::cuda {
namespace {

template <typename T>
struct RowDotParams {
  const T* a;           // [rows, K]
  EitherInput<T> b;     // [rows, K]
  const T* dy;          // [rows, N], or null with bias
  EitherInput<T> bias;  // [G, N]
  EitherOutput<T> out;  // [rows]
  int64_t rows, K, N;
  RowMap map;
  bool zero_tail;
  bool a_vectors, bias_vectors;
};

template <typename T>
__device__ __forceinline__ void add_products(Accumulator<T>& sum, const T* left, const EitherInput<T>& right,
                                             int64_t right_row, int64_t length, bool vectors) {
  constexpr int kCount = kStrip<T>;
  for (int64_t first = threadIdx.x % 32 * kCount; first < length; first += 32 * kCount) {
    Accumulator<T> l[kCount];
    Accumulator<T> r[kCount];
    load_strip<T>(l, left, first, length, vectors);
    load_strip<T>(r, right, right_row, first, length, vectors);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum = multiply_add(l[i], r[i], sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads, kRowBlocksPerSm)
    row_dot_kernel(const __grid_constant__ RowDotParams<T> p) {
  const int64_t num_rows = p.map.offsets[p.map.G];
  const int64_t end = p.zero_tail ? p.rows : num_rows;
  for (RowWalk at(RowPieces::whole(p.K)); at.row < end; at.advance()) {
    const int64_t row = at.row;
    Accumulator<T> sum = 0;
    if (row < num_rows) {
      add_products<T>(sum, p.a + row * p.K, p.b, row * p.K, p.K, p.a_vectors);
      if (p.bias.data != nullptr) {
        const int64_t group = find_group(p.map.offsets, p.map.G, row);
        add_products<T>(sum, p.dy + row * p.N, p.bias, group * p.N, p.N, p.bias_vectors);
      }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) p.out.store(row, sum);
  }
}

}  // namespace

Status row_dot(const RowDotProblem& p, const Launch& launch) {
  RowMap map;
  const Status mapped = make_row_map(p.sizes, 1, launch, &map);
  if (!mapped.ok()) return mapped;
  return with_type(p.in, [&](auto element) {
    using T = decltype(element);
    const EitherInput<T> b = either_input<T>(p.b, p.b_dtype);
    const EitherInput<T> bias = either_input<T>(p.bias, p.bias_dtype);
    const RowDotParams<T> params = {
        static_cast<const T*>(p.a),
        b,
        static_cast<const T*>(p.dy),
        bias,
        either_output<T>(p.out, p.out_dtype),
        p.T,
        p.K,
        p.N,
        map,
        p.zero_tail,
        rows_take_vectors<T>(p.a, p.K) && rows_take_vectors<T>(p.b, b.is_wide, p.K),
        rows_take_vectors<T>(p.dy, p.N) && rows_take_vectors<T>(p.bias, bias.is_wide, p.N)};
    return launch_kernel(row_dot_kernel<T>,
                         row_grid(p.T, RowPieces::whole(p.K), kRowBlocksPerSm, launch.device),
                         dim3(kRowThreads), 0, launch, params);
  });
}

}  // namespace grouped::cuda
