// SPDX-License-Identifier: Apache-2.0
// The operations that go row by row: activation and its gradient, row_scale, row_dot.
#include "core/activation_math.h"
#include "cpu/kernels.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace grouped::cpu {
namespace {

// compute(begin, end) for the rows before the tail, zero(begin, end) for the tail where the problem asks for
// it.
template <typename Compute, typename Zero>
void for_rows(const Launch& launch, int64_t used, int64_t total, bool zero_tail, int64_t elements_per_row,
              const Compute& compute, const Zero& zero) {
  const Cut rows = cut_evenly(zero_tail ? total : used, rows_per_task(elements_per_row), 1);
  parallel_for(launch, rows.count, [&](int64_t i) {
    const int64_t begin = rows.begin(i);
    const int64_t end = smaller(begin + rows.size, zero_tail ? total : used);
    const int64_t tail = larger(begin, smaller(end, used));
    if (begin < tail) compute(begin, tail);
    if (tail < end) zero(tail, end);
  });
}

}  // namespace

Status activation(const ActivationProblem& p, const Launch& launch) {
  const GroupTables tables(launch.workspace, p.sizes.count);
  Status status = resolve_offsets(p.sizes, true, tables.offsets);
  if (!status.ok()) return status;
  const Kernels& k = kernels();
  const Rows out = {p.out, p.F * size_of(p.in)};
  for_rows(
      launch, tables.offsets[p.sizes.count], p.T, p.zero_tail, p.F,
      [&](int64_t begin, int64_t end) { k.activation(p, begin, end); },
      [&](int64_t begin, int64_t end) { out.zero(begin, end); });
  return status;
}

Status activation_grad(const ActivationGradProblem& g, const Launch& launch) {
  const ActivationProblem& p = g.forward;
  const GroupTables tables(launch.workspace, p.sizes.count);
  Status status = resolve_offsets(p.sizes, true, tables.offsets);
  if (!status.ok()) return status;
  const Kernels& k = kernels();
  const Rows dh = {g.dh, (is_gated(p.kind) ? 2 : 1) * p.F * size_of(p.in)};
  const Rows d_row_scale = {g.d_row_scale, size_of(p.scale_dtype)};
  for_rows(
      launch, tables.offsets[p.sizes.count], p.T, p.zero_tail, p.F,
      [&](int64_t begin, int64_t end) { k.activation_grad(g, begin, end); },
      [&](int64_t begin, int64_t end) {
        dh.zero(begin, end);
        d_row_scale.zero(begin, end);
      });
  return status;
}

Status row_scale(const RowScaleProblem& p, const Launch& launch) {
  const GroupTables tables(launch.workspace, p.sizes.count);
  Status status = resolve_offsets(p.sizes, true, tables.offsets);
  if (!status.ok()) return status;
  const Kernels& k = kernels();
  const Rows out = {p.out, p.K * size_of(p.out_dtype)};
  for_rows(
      launch, tables.offsets[p.sizes.count], p.T, p.zero_tail, p.K,
      [&](int64_t begin, int64_t end) { k.row_scale(p, begin, end); },
      [&](int64_t begin, int64_t end) { out.zero(begin, end); });
  return status;
}

Status row_dot(const RowDotProblem& p, const Launch& launch) {
  const GroupTables tables(launch.workspace, p.G);
  Status status = resolve_offsets(p.sizes, true, tables.offsets);
  if (!status.ok()) return status;
  const int64_t* offsets = tables.offsets;
  const Kernels& k = kernels();
  const Rows out = {p.out, size_of(p.out_dtype)};
  for_rows(
      launch, offsets[p.G], p.T, p.zero_tail, p.K + (p.bias ? p.N : 0),
      [&](int64_t begin, int64_t end) {
        for (int64_t g = group_holding(offsets, p.G, begin); begin < end; ++g) {
          const int64_t stop = smaller(end, offsets[g + 1]);
          if (begin < stop) k.row_dot(p, g, begin, stop);
          begin = larger(begin, stop);
        }
      },
      [&](int64_t begin, int64_t end) { out.zero(begin, end); });
  return status;
}

}  // namespace grouped::cpu
