// SPDX-License-Identifier: Apache-2.0
// dh = d activation / dh * (dy * row_scale) and d_row_scale[t] = sum_f dy[t,f] activation(h[t])[f].
// With F = 0 there is no dh, but d_row_scale is still written: zeros.
#include "portable/activation.cuh"

namespace grouped::cuda {
namespace {

template <typename T>
struct BackwardParams {
  const T* h;                   // [rows, 2F] or [rows, F]
  const T* dy;                  // [rows, F]
  EitherInput<T> row_scale;     // [rows], or null
  T* dh;                        // as h
  EitherOutput<T> d_row_scale;  // [rows], or null
  int64_t rows, F;
  RowPieces pieces;
  ActivationParams<Accumulator<T>> options;
  GroupSizes sizes;
  bool interleaved, zero_tail;
  bool vectors;
};

template <int32_t kKind, bool kVectors, typename T>
__device__ __forceinline__ void differentiate_rows(const BackwardParams<T>& p, int64_t num_rows) {
  using A = Accumulator<T>;
  constexpr int kCount = kStrip<T>;
  const int64_t h_length = is_gated(kKind) ? 2 * p.F : p.F;
  const bool has_scale = p.row_scale.data != nullptr;
  for (RowWalk at(p.pieces); at.row < num_rows; at.advance()) {
    const int64_t row = at.row;
    const A scale = has_scale ? p.row_scale[row] : A(1);
    A sum = 0;
    const int64_t begin = at.piece * p.pieces.length;
    const int64_t end = begin + p.pieces.length < p.F ? begin + p.pieces.length : p.F;
    for (int64_t first = begin + threadIdx.x % 32 * kCount; first < end; first += 32 * kCount) {
      A gate[kCount];
      A up[kCount];
      A dy[kCount];
      load_gate_up<kKind, T>(gate, up, p.h + row * h_length, first, p.F, p.interleaved, kVectors);
      load_strip<T>(dy, p.dy + row * p.F, first, p.F, kVectors);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const ActivationGradient<A> gradient =
            activation_gradient<kKind, 8 * sizeof(T)>(gate[i], up[i], p.options);
        // Past F gate, up and dy are zeros, and so is their product: clamped SwiGLU too has gate' = 0 there.
        sum = multiply_add(dy[i], gradient.value, sum);
        const A upstream = has_scale ? multiply(dy[i], scale) : dy[i];
        gate[i] = multiply(gradient.d_gate, upstream);
        up[i] = multiply(gradient.d_up, upstream);
      }
      store_gate_up<kKind, T>(p.dh + row * h_length, first, p.F, gate, up, p.interleaved, kVectors);
    }
    if (p.d_row_scale.data != nullptr) {
      sum = warp_sum(sum);
      if (threadIdx.x % 32 == 0) p.d_row_scale.store(row, sum);
    }
  }
}

constexpr int kBlocksPerSm = 4;  // 64 registers a thread

template <int32_t kKind, typename T>
__global__ void __launch_bounds__(kRowThreads, kBlocksPerSm)
    activation_grad_kernel(const __grid_constant__ BackwardParams<T> p) {
  const int64_t num_rows = last_row(p.sizes);
  if (p.vectors) {
    differentiate_rows<kKind, true>(p, num_rows);
  } else {
    differentiate_rows<kKind, false>(p, num_rows);
  }
  const int64_t h_length = is_gated(kKind) ? 2 * p.F : p.F;
  if (p.zero_tail) {
    using A = Accumulator<T>;
    zero_bytes(reinterpret_cast<char*>(p.dh + num_rows * h_length),
               reinterpret_cast<char*>(p.dh + p.rows * h_length));
    if (p.d_row_scale.data != nullptr) {
      const int64_t bytes = p.d_row_scale.is_wide ? sizeof(A) : sizeof(T);
      char* d_row_scale = static_cast<char*>(p.d_row_scale.data);
      zero_bytes(d_row_scale + num_rows * bytes, d_row_scale + p.rows * bytes);
    }
  }
}

}  // namespace

Status activation_grad(const ActivationGradProblem& p, const Launch& launch) {
  const ActivationProblem& f = p.forward;
  return with_type(f.in, [&](auto element) {
    using T = decltype(element);
    const bool vectors =
        rows_take_vectors<T>(f.h, f.F) && rows_take_vectors<T>(p.dy, f.F) && rows_take_vectors<T>(p.dh, f.F);
    const RowPieces pieces = p.d_row_scale == nullptr ? RowPieces::strips<T>(f.F) : RowPieces::whole(f.F);
    const BackwardParams<T> params = {static_cast<const T*>(f.h),
                                      static_cast<const T*>(p.dy),
                                      either_input<T>(f.row_scale, f.scale_dtype),
                                      static_cast<T*>(p.dh),
                                      either_output<T>(p.d_row_scale, f.scale_dtype),
                                      f.T,
                                      f.F,
                                      pieces,
                                      activation_params<T>(f),
                                      f.sizes,
                                      f.interleaved,
                                      f.zero_tail,
                                      vectors};
    return with_kind(f.kind, [&](auto kind) {
      return launch_kernel(activation_grad_kernel<decltype(kind)::value, T>,
                           row_grid(f.T, pieces, kBlocksPerSm, launch.device), dim3(kRowThreads), 0, launch,
                           params);
    });
  });
}

}  // namespace grouped::cuda
