// SPDX-License-Identifier: Apache-2.0
// out[t] = round(activation(h[t]) * row_scale[t]).
#include "portable/activation.cuh"

namespace grouped::cuda {
namespace {

template <typename T>
struct ForwardParams {
  const T* h;                // [rows, 2F] or [rows, F]
  EitherInput<T> row_scale;  // [rows], or null
  T* out;                    // [rows, F]
  int64_t rows, F;
  RowPieces pieces;
  ActivationParams<Accumulator<T>> options;
  GroupSizes sizes;
  bool interleaved, zero_tail;
  bool vectors;
};

template <int32_t kKind, bool kVectors, typename T>
__device__ __forceinline__ void activate_rows(const ForwardParams<T>& p, int64_t num_rows) {
  using A = Accumulator<T>;
  const int64_t h_length = is_gated(kKind) ? 2 * p.F : p.F;
  const bool has_scale = p.row_scale.data != nullptr;
  // One piece ahead, so that memory has work while this one is computed.
  RowWalk next(p.pieces);
  const auto first_of = [&](const RowWalk& at) {
    return at.piece * p.pieces.length + threadIdx.x % 32 * kStrip<T>;
  };
  HiddenStrip<kKind, T> ahead = {};
  const auto read = [&] {
    const int64_t first = first_of(next);
    if (next.row >= num_rows || first >= p.F) return;
    ahead = read_hidden<kKind>(p.h + next.row * h_length, first, p.F, p.interleaved, kVectors);
  };
  read();
  while (next.row < num_rows) {
    const int64_t row = next.row;
    const int64_t first = first_of(next);
    A gate[kStrip<T>];
    A up[kStrip<T>];
    split_hidden<kKind>(gate, up, ahead, p.interleaved);
    next.advance();
    read();
    const A scale = has_scale ? p.row_scale[row] : A(1);
    A value[kStrip<T>];
#pragma unroll
    for (int i = 0; i < kStrip<T>; ++i) {
      value[i] = activation_value<kKind, 8 * sizeof(T)>(gate[i], up[i], p.options);
      if (has_scale) value[i] = multiply(value[i], scale);
    }
    if (first < p.F) store_strip<T>(p.out + row * p.F, first, p.F, value, kVectors);
  }
}

constexpr int kBlocksPerSm = 4;  // 64 registers a thread

template <int32_t kKind, typename T>
__global__ void __launch_bounds__(kRowThreads, kBlocksPerSm)
    activation_kernel(const __grid_constant__ ForwardParams<T> p) {
  const int64_t num_rows = last_row(p.sizes);
  if (p.vectors) {
    activate_rows<kKind, true>(p, num_rows);
  } else {
    activate_rows<kKind, false>(p, num_rows);
  }
  if (p.zero_tail) {
    zero_bytes(reinterpret_cast<char*>(p.out + num_rows * p.F),
               reinterpret_cast<char*>(p.out + p.rows * p.F));
  }
}

}  // namespace

Status activation(const ActivationProblem& p, const Launch& launch) {
  return with_type(p.in, [&](auto element) {
    using T = decltype(element);
    const bool vectors = rows_take_vectors<T>(p.h, p.F) && rows_take_vectors<T>(p.out, p.F);
    const RowPieces pieces = RowPieces::strips<T>(p.F);
    const ForwardParams<T> params = {static_cast<const T*>(p.h),
                                     either_input<T>(p.row_scale, p.scale_dtype),
                                     static_cast<T*>(p.out),
                                     p.T,
                                     p.F,
                                     pieces,
                                     activation_params<T>(p),
                                     p.sizes,
                                     p.interleaved,
                                     p.zero_tail,
                                     vectors};
    return with_kind(p.kind, [&](auto kind) {
      return launch_kernel(activation_kernel<decltype(kind)::value, T>,
                           row_grid(p.T, pieces, kBlocksPerSm, launch.device), dim3(kRowThreads), 0, launch,
                           params);
    });
  });
}

}  // namespace grouped::cuda
