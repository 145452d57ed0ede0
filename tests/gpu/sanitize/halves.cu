// SPDX-License-Identifier: Apache-2.0
// Whether the halves of L2 are found, and the shares of a launch follow from them.
#include <algorithm>
#include <cstdio>

#include "harness.h"
#include "sm90/halves.h"

namespace sanitize {
namespace {

using grouped::cuda::sm90::HandingOut;
using grouped::cuda::sm90::kMaxPairs;
using grouped::cuda::sm90::PieceCounters;

void check_places(Report& report, const PieceCounters& found, int pairs, int clusters, bool must_know) {
  if (found.taken[0] != 0 || found.taken[1] != 0) report.fail("somebody has taken a piece already");
  const uint8_t* halves = found.half_of_pair;
  const int first_half = static_cast<int>(std::count(halves, halves + pairs, 0));
  if (std::any_of(halves, halves + kMaxPairs, [](uint8_t half) { return half > 1; }))
    report.fail("a half that is neither 0 nor 1");
  if (found.first_half < 0 || found.first_half > clusters) report.fail("more places than clusters");
  if (!must_know) return;
  if (first_half < pairs * 3 / 10 || first_half > pairs * 7 / 10)
    report.fail(std::to_string(first_half) + " of " + std::to_string(pairs) + " pairs in the first half");
  if (found.first_half != first_half * clusters / pairs)
    report.fail(std::to_string(found.first_half) + " places of " + std::to_string(clusters) + " for them");
}

// Two groups, the second of which has `rows` of 100 and leads, in `pieces` pieces: whether the second half
// begins at the end.
bool begins_at_end(Report& report, int64_t rows, int64_t pieces, bool from_both_ends, PieceCounters* memory) {
  struct {
    int64_t offsets[3];
    int32_t order[2];
  } map = {{0, 100 - rows, 100}, {1, 0}}, *on_device = nullptr;
  PieceCounters found = {};
  (void)cudaMalloc(&on_device, sizeof map);
  (void)cudaMemcpy(on_device, &map, sizeof map, cudaMemcpyHostToDevice);
  const grouped::Launch launch = {nullptr, nullptr, memory, 0, false};
  const HandingOut handing_out = {
      8, from_both_ends, {{on_device->offsets, nullptr, on_device->order, 2}, pieces}};
  const grouped::Status status =
      grouped::cuda::sm90::prepare_counters(handing_out, launch, grouped::cuda::Begin::kBehind, memory);
  if (!status.ok()) report.fail(status.message());
  if (cudaMemcpy(&found, memory, sizeof found, cudaMemcpyDeviceToHost) != cudaSuccess)
    report.fail("no copy back");
  (void)cudaFree(on_device);
  return found.from_ends != 0;
}

}  // namespace

// A tool that watches every access makes latencies long, so there (`quick`) halves need not be found.
void halves_suite(Report& report, bool quick) {
  cudaDeviceProp device = {};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || device.major != 9 || device.minor != 0) return;
  const int pairs = device.multiProcessorCount / 2;
  report.begin_suite("halves of L2");
  PieceCounters* memory = nullptr;
  (void)cudaMalloc(&memory, sizeof(PieceCounters));
  for (const int clusters : {pairs, pairs, 1, 7}) {
    report.begin_case(std::to_string(clusters) + " clusters");
    (void)cudaMemset(memory, 0xff, sizeof(PieceCounters));
    const grouped::Launch launch = {nullptr, nullptr, memory, 0, false};
    const grouped::Status status = grouped::cuda::sm90::prepare_counters(
        HandingOut{clusters, false, {}}, launch, grouped::cuda::Begin::kBehind, memory);
    if (!status.ok()) report.fail(status.message());
    PieceCounters found = {};
    if (cudaMemcpy(&found, memory, sizeof found, cudaMemcpyDeviceToHost) != cudaSuccess)
      report.fail("no copy back");
    check_places(report, found, pairs, clusters, !quick);
    if (found.from_ends != 0) report.fail("from both ends, unasked");
    report.end_case();
  }
  report.begin_case("a leading group");
  if (begins_at_end(report, 50, 9, true, memory)) report.fail("half of the rows, more pieces than clusters");
  if (!begins_at_end(report, 49, 9, true, memory)) report.fail("fewer than half of the rows");
  if (!begins_at_end(report, 50, 1, true, memory))
    report.fail("no more pieces than half of the clusters take at once");
  if (begins_at_end(report, 49, 9, false, memory)) report.fail("all take the first pieces");
  report.end_case();
  (void)cudaFree(memory);
  report.end_suite();
}

}  // namespace sanitize
