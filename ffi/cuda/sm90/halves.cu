// SPDX-License-Identifier: Apache-2.0
#include "common/launch.h"
#include "common/ptx.cuh"
#include "sm90/halves.h"

namespace grouped::cuda::sm90 {
namespace {

constexpr int kMaxMultiprocessors = 2 * kMaxPairs;
constexpr int kLines = 64;
constexpr int kLineWords = 1024;  // apart: one line in 4 KB, lest all have their home in one half
constexpr int kRepeats = 5;
constexpr int kSplitThreads = 256;
static_assert(kSplitThreads >= kMaxMultiprocessors, "a thread for each multiprocessor");

// What is known of this device. All zero, which is how memory of a module begins, says: nothing.
struct HalfMap {
  int32_t pairs, first_half;
  uint8_t half_of_pair[kMaxPairs];
};
__device__ HalfMap half_map;
__device__ uint32_t probe_lines[kLines * kLineWords];
__device__ uint16_t probe_cycles[kMaxMultiprocessors * kLines];

__device__ __forceinline__ uint32_t multiprocessor() {
  uint32_t id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  return id;
}

// One thread on each multiprocessor: how long an atomic takes on each line. Lines are met in another order on
// each, so that few wait for each other; the least of some repeats is free of those who did.
__global__ void probe_kernel() {
  const uint32_t self = multiprocessor();
  if (threadIdx.x != 0 || self >= kMaxMultiprocessors) return;
  for (int i = 0; i < kLines; ++i) {
    const int line = static_cast<int>((i + self) % kLines);
    uint32_t best = UINT16_MAX;
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      const long long begin = clock64();
      const uint32_t zero = atomicAdd(&probe_lines[line * kLineWords], 0u);
      // The clock must not be read before the answer is here.
      asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p trap;\n}\n" ::"r"(zero) : "memory");
      best = min(best, static_cast<uint32_t>(clock64() - begin));
    }
    probe_cycles[self * kLines + line] = static_cast<uint16_t>(best);
  }
}

// Two multiprocessors of one half find the same lines near: their latencies, less the mean of all, go
// together.
__global__ void __launch_bounds__(kSplitThreads) split_kernel(int multiprocessors) {
  __shared__ float means[kLines];
  __shared__ int first_half, unclear;
  const int self = static_cast<int>(threadIdx.x);
  if (self == 0) first_half = unclear = 0;
  if (self < kLines) {
    float sum = 0.0f;
    for (int m = 0; m < multiprocessors; ++m) sum += probe_cycles[m * kLines + self];
    means[self] = sum / multiprocessors;
  }
  __syncthreads();
  float own = 0.0f, first = 0.0f, both = 0.0f;
  if (self < multiprocessors) {
    for (int line = 0; line < kLines; ++line) {
      const float a = probe_cycles[self * kLines + line] - means[line];
      const float b = probe_cycles[line] - means[line];
      own += a * a;
      first += b * b;
      both += a * b;
    }
  }
  // Measured on H100: 0.8 and more, of one sign or the other.
  const bool is_clear = both * both > 0.25f * own * first;
  const bool is_first = both > 0.0f;
  const bool neighbour_is_first = __shfl_xor_sync(0xffffffffu, is_first, 1);
  if (self < multiprocessors) {
    if (!is_clear || is_first != neighbour_is_first) atomicAdd(&unclear, 1);
    if (self % 2 == 0) {
      half_map.half_of_pair[self / 2] = is_first ? 0 : 1;
      if (is_first) atomicAdd(&first_half, 1);
    }
  }
  __syncthreads();
  if (self == 0 && unclear == 0) {
    half_map.first_half = first_half;
    __threadfence();
    half_map.pairs = multiprocessors / 2;
  }
}

struct PrepareParams {
  PieceCounters* counters;
  HandingOut handing_out;
};

// Whether the other half may begin at the end: the first group does not need all clusters.
__device__ __forceinline__ bool may_begin_at_end(const LeadingGroup& leader, int first_half) {
  const RowMap& map = leader.map;
  const int32_t group = map.order[0];
  const int64_t rows = map.offsets[group + 1] - map.offsets[group];
  return rows == 0 || rows * 2 < map.offsets[map.G] || leader.pieces <= first_half;
}

// The map may be changing under this copy, by the split on another stream. Whatever is read, the clusters of
// this launch read the copy and agree.
__global__ void prepare_kernel(const __grid_constant__ PrepareParams p) {
  let_next_begin();
  wait_for_previous();
  for (int pair = threadIdx.x; pair < kMaxPairs; pair += blockDim.x)
    p.counters->half_of_pair[pair] = half_map.half_of_pair[pair];
  const int pairs = half_map.pairs;
  const int clusters = p.handing_out.clusters;
  const int share = pairs > 0 ? half_map.first_half * clusters / pairs : clusters;
  const int first_half = min(max(share, 0), clusters);
  if (threadIdx.x == 0) {
    p.counters->taken[0] = p.counters->taken[1] = 0;
    p.counters->first_half = first_half;
  } else if (threadIdx.x == 32) {
    p.counters->from_ends =
        p.handing_out.from_both_ends && may_begin_at_end(p.handing_out.leader, first_half);
  }
}

// The stream to measure in: the call's own. A captured probe would be measured again at each replay, so
// beside a capture it is the thread's.
cudaStream_t probe_stream(const Launch& launch) {
  return is_capturing(launch) ? cudaStreamPerThread : stream_of(launch);
}

Status probe(const Launch& launch) {
  const int multiprocessors = num_multiprocessors(launch.device);
  if (multiprocessors > kMaxMultiprocessors || multiprocessors % 2 != 0) return Status();
  // So much memory that a multiprocessor holds one block.
  constexpr int kBytes = 200 * 1024;
  static std::atomic<uint64_t> shared_memory_allowed{0};
  const Status allowed = allow_shared_memory(probe_kernel, kBytes, launch.device, shared_memory_allowed);
  if (!allowed.ok()) return allowed;
  const cudaStream_t stream = probe_stream(launch);
  probe_kernel<<<multiprocessors, 32, kBytes, stream>>>();
  split_kernel<<<1, kSplitThreads, 0, stream>>>(multiprocessors);
  return launch_status(cudaGetLastError(), launch.device);
}

}  // namespace

Status prepare_counters(const HandingOut& handing_out, const Launch& launch, Begin begin,
                        PieceCounters* counters) {
  static std::atomic<uint64_t> probed{0};
  const uint64_t bit = launch.device < 64 ? uint64_t{1} << launch.device : 0;
  if (bit != 0 && (probed.load(std::memory_order_relaxed) & bit) == 0 &&
      (probed.fetch_or(bit, std::memory_order_relaxed) & bit) == 0) {
    (void)probe(launch);  // without it all clusters count as one half; what is really wrong, the launch tells
  }
  return launch_kernel(prepare_kernel, 1, dim3(kMaxPairs), 0, launch, PrepareParams{counters, handing_out},
                       begin);
}

}  // namespace grouped::cuda::sm90
