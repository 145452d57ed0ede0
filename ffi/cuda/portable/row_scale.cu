// SPDX-License-Identifier: Apache-2.0
// out[t] = round(x[t] * row_scale[t]), x as wide as out or wider.
#include "portable/rowwise.cuh"

namespace grouped::cuda {
namespace {

template <typename T>
struct RowScaleParams {
  EitherInput<T> x, row_scale;  // [rows, K], [rows]
  T* out;                       // [rows, K]
  int64_t rows, K;
  RowPieces pieces;
  GroupSizes sizes;
  bool zero_tail;
  bool vectors;
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads, kRowBlocksPerSm)
    row_scale_kernel(const __grid_constant__ RowScaleParams<T> p) {
  constexpr int kCount = kStrip<T>;
  const int64_t num_rows = last_row(p.sizes);
  for (RowWalk at(p.pieces); at.row < num_rows; at.advance()) {
    const int64_t row = at.row;
    const int64_t first = at.piece * p.pieces.length + threadIdx.x % 32 * kCount;
    if (first < p.K) {
      const Accumulator<T> scale = p.row_scale[row];
      Accumulator<T> strip[kCount];
      load_strip<T>(strip, p.x, row * p.K, first, p.K, p.vectors);
#pragma unroll
      for (Accumulator<T>& v : strip) v = multiply(v, scale);
      store_strip<T>(p.out + row * p.K, first, p.K, strip, p.vectors);
    }
  }
  if (p.zero_tail) {
    zero_bytes(reinterpret_cast<char*>(p.out + num_rows * p.K),
               reinterpret_cast<char*>(p.out + p.rows * p.K));
  }
}

}  // namespace

Status row_scale(const RowScaleProblem& p, const Launch& launch) {
  return with_type(p.out_dtype, [&](auto element) {
    using T = decltype(element);
    const EitherInput<T> x = either_input<T>(p.x, p.in);
    const bool vectors = rows_take_vectors<T>(p.x, x.is_wide, p.K) && rows_take_vectors<T>(p.out, p.K);
    const RowPieces pieces = RowPieces::strips<T>(p.K);
    const RowScaleParams<T> params = {x,
                                      either_input<T>(p.row_scale, p.scale_dtype),
                                      static_cast<T*>(p.out),
                                      p.T,
                                      p.K,
                                      pieces,
                                      p.sizes,
                                      p.zero_tail,
                                      vectors};
    return launch_kernel(row_scale_kernel<T>, row_grid(p.T, pieces, kRowBlocksPerSm, launch.device),
                         dim3(kRowThreads), 0, launch, params);
  });
}

}  // namespace grouped::cuda
