// SPDX-License-Identifier: Apache-2.0
// grouped_mm, grouped_wgrad and the bias gradient: which tiles there are.
#include "cpu/kernels.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace grouped::cpu {
namespace {

struct TileSize {
  int64_t rows, columns;
};

// The largest tile that still gives every thread some: `rows` in all, in `groups` parts. Narrow before low,
// because the left operand is the cheaper one to pack again.
TileSize tile_size(DType in, int64_t groups, int64_t rows, int64_t columns, int64_t threads) {
  TileSize size = {TileLimits<float>::kRows, TileLimits<float>::kColumns};
  if (in == DType::kF64) size = {TileLimits<double>::kRows, TileLimits<double>::kColumns};
  if (threads == 1) return size;
  const auto too_few = [&] {
    return larger(groups, ceil_div(rows, size.rows)) * ceil_div(columns, size.columns) < 2 * threads;
  };
  while (size.columns > 2 * kColumnGranule && too_few()) size.columns /= 2;
  while (size.rows > 48 && too_few()) size.rows /= 2;
  return size;
}

}  // namespace

Status mm(const MmProblem& p, const Launch& launch) {
  const GroupTables tables(launch.workspace, p.G);
  const int64_t* offsets = tables.offsets;
  Status status = resolve_offsets(p.sizes, true, tables.offsets);
  if (!status.ok()) return status;
  if (p.N == 0 || p.T == 0) return status;

  int64_t used_groups = 0;
  for (int64_t g = 0; g < p.G; ++g) used_groups += offsets[g + 1] > offsets[g];
  const TileSize most = tile_size(p.in, used_groups, offsets[p.G], p.N, thread_count(launch));
  const Cut columns = cut_evenly(p.N, most.columns, kColumnGranule);
  int64_t* first_row_tile = tables.first_task;
  first_row_tile[0] = 0;
  for (int64_t g = 0; g < p.G; ++g) {
    first_row_tile[g + 1] = first_row_tile[g] + cut_evenly(offsets[g + 1] - offsets[g], most.rows, 1).count;
  }
  const int64_t tiles = first_row_tile[p.G] * columns.count;

  const Rows out = {p.out, p.N * size_of(p.out_dtype)};
  const Cut tail = p.zero_tail ? cut_evenly(p.T - offsets[p.G], rows_per_task(p.N), 1) : Cut{};

  const Kernels& k = kernels();
  parallel_for(launch, tiles + tail.count, [&](int64_t i) {
    if (i >= tiles) {
      const int64_t begin = offsets[p.G] + tail.begin(i - tiles);
      return out.zero(begin, smaller(begin + tail.size, p.T));
    }
    const int64_t row_tile = i / columns.count;
    const int64_t g = group_holding(first_row_tile, p.G, row_tile);
    const Cut rows = cut_evenly(offsets[g + 1] - offsets[g], most.rows, 1);
    const int64_t row = offsets[g] + rows.begin(row_tile - first_row_tile[g]);
    const int64_t column = columns.begin(i % columns.count);
    k.mm(p, {g, row, smaller(rows.size, offsets[g + 1] - row), column, smaller(columns.size, p.N - column)});
  });
  return status;
}

Status wgrad(const WgradProblem& p, const Launch& launch) {
  const GroupTables tables(launch.workspace, p.G);
  const int64_t* offsets = tables.offsets;
  Status status = resolve_offsets(p.sizes, true, tables.offsets);
  if (!status.ok()) return status;

  const int64_t height = p.out_is_gkn ? p.K : p.N;
  const int64_t width = p.out_is_gkn ? p.N : p.K;
  const TileSize most = tile_size(p.in, p.G, p.G * height, width, thread_count(launch));
  const Cut rows = cut_evenly(height, most.rows, 1);
  const Cut columns = cut_evenly(width, most.columns, kColumnGranule);
  const int64_t tiles_per_group = rows.count * columns.count;

  const Kernels& k = kernels();
  parallel_for(launch, p.G * tiles_per_group, [&](int64_t i) {
    const int64_t g = i / tiles_per_group;
    const int64_t group_rows = offsets[g + 1] - offsets[g];
    if (group_rows == 0 && p.accumulate) return;
    const int64_t row = rows.begin(i % tiles_per_group / columns.count);
    const int64_t column = columns.begin(i % columns.count);
    k.wgrad(p, offsets[g], group_rows,
            {g, row, smaller(rows.size, height - row), column, smaller(columns.size, width - column)});
  });
  return status;
}

Status bias_grad(const BiasGradProblem& p, const Launch& launch) {
  const GroupTables tables(launch.workspace, p.G);
  const int64_t* offsets = tables.offsets;
  Status status = resolve_offsets(p.sizes, true, tables.offsets);
  if (!status.ok()) return status;

  const Cut columns = cut_evenly(p.N, 256, kColumnGranule);
  const Kernels& k = kernels();
  parallel_for(launch, p.G * columns.count, [&](int64_t i) {
    const int64_t g = i / columns.count;
    const int64_t group_rows = offsets[g + 1] - offsets[g];
    if (group_rows == 0 && p.accumulate) return;
    const int64_t column = columns.begin(i % columns.count);
    k.bias_grad(p, offsets[g], group_rows, {g, 0, 1, column, smaller(columns.size, p.N - column)});
  });
  return status;
}

}  // namespace grouped::cpu
