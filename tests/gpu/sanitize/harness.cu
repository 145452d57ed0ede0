// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "harness.h"

namespace sanitize {
namespace {

constexpr int64_t kGuardBytes = 1024;  // keeps the 256-byte alignment of cudaMalloc
constexpr uint8_t kGuard = 0xa5;
constexpr int kPrinted = 3;  // failures of one case

uint8_t* contents(void* base) { return static_cast<uint8_t*>(base) + kGuardBytes; }

bool is_guard(const std::vector<uint8_t>& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == kGuard; });
}

void* guarded_malloc(size_t size) {
  void* base = nullptr;
  SANITIZE_CUDA(cudaMalloc(&base, size + 2 * kGuardBytes));
  SANITIZE_CUDA(cudaMemset(base, kGuard, size + 2 * kGuardBytes));
  return base;
}

bool guards_hold(void* base, size_t size) {
  std::vector<uint8_t> before(kGuardBytes);
  std::vector<uint8_t> after(kGuardBytes);
  SANITIZE_CUDA(cudaMemcpy(before.data(), base, kGuardBytes, cudaMemcpyDeviceToHost));
  SANITIZE_CUDA(cudaMemcpy(after.data(), contents(base) + size, kGuardBytes, cudaMemcpyDeviceToHost));
  return is_guard(before) && is_guard(after);
}

}  // namespace

void check_cuda(int error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(1);
}

void Report::begin_suite(const char* name) {
  suite_ = name;
  suite_passed_ = suite_failed_ = 0;
}

void Report::end_suite() {
  std::printf("suite %s: %d passed, %d failed\n", suite_.c_str(), suite_passed_, suite_failed_);
  std::fflush(stdout);
  passed_ += suite_passed_;
  failed_ += suite_failed_;
}

void Report::end_case() {
  if (failures_in_case_ > kPrinted) std::printf("  ... %d more\n", failures_in_case_ - kPrinted);
  (failures_in_case_ == 0 ? suite_passed_ : suite_failed_) += 1;
  failures_in_case_ = 0;
}

void Report::fail(const std::string& what) {
  if (failures_in_case_++ < kPrinted)
    std::printf("FAILED %s %s: %s\n", suite_.c_str(), case_.c_str(), what.c_str());
}

void Report::digest(const Array& result) {
  for (const uint8_t byte : result.bytes) digest_ = (digest_ ^ byte) * 0x100000001b3;
}

int Report::finish() {
  std::printf("digest of all results: %016llx\n", static_cast<unsigned long long>(digest_));
  std::printf("%d passed, %d failed\n", passed_, failed_);
  return failed_ == 0 ? 0 : 1;
}

Array Groups::array() const {
  Array sizes(is_64bit ? GROUPED_I64 : GROUPED_I32, {G()});
  for (int64_t g = 0; g < G(); ++g) {
    const int32_t narrow = static_cast<int32_t>(values[g]);
    uint8_t* to = sizes.bytes.data() + g * size_of(sizes.dtype);
    std::memcpy(to, is_64bit ? static_cast<const void*>(&values[g]) : &narrow, size_of(sizes.dtype));
  }
  return sizes;
}

std::vector<int64_t> Groups::offsets() const {
  std::vector<int64_t> offsets = {0};
  for (int64_t value : values) {
    const int64_t v = std::min(std::max<int64_t>(value, 0), T);
    offsets.push_back(are_ends ? std::max(v, offsets.back()) : std::min(offsets.back() + v, T));
  }
  return offsets;
}

std::vector<Groups> group_cases(bool quick) {
  std::vector<Groups> cases = {
      {"empty first, middle, last", {0, 5, 0, 130, 0}, 140, false, false},
      {"ends", {3, 3, 20, 21, 150}, 153, true, true},
      {"negative and too large", {-3, 10, -1, 200, 7}, 90, false, false},
      {"all empty", {0, 0, 0}, 9, true, false},
      {"several tiles each", {300, 0, 129, 256, 64, 7}, 760, false, false},
  };
  // They are sorted by four warps, which exchange through shared memory.
  Groups warps{"more groups than a warp has lanes", {}, 110, false, false};
  for (int64_t g = 0; g < 70; ++g) warps.values.push_back(g * 5 % 7 % 4);
  cases.push_back(warps);
  if (quick) return cases;
  const std::vector<Groups> more = {
      {"no tail", {64, 128, 1, 16}, 209, true, false},
      {"one row", {0, 1, 0}, 1, false, false},
      {"one group", {131}, 135, false, true},
      {"T=0", {0, 0}, 0, false, false},
      {"G=0", {}, 6, true, false},
      {"huge 64-bit sizes", {10, int64_t{1} << 62, INT64_MAX, INT64_MIN, 3}, 37, true, false},
      {"falling and huge ends", {10, 5, -7, INT64_MAX, 12}, 40, true, true},
      {"falling 32-bit ends", {-1, 12, 11, INT32_MAX, 0}, 29, false, true},
  };
  cases.insert(cases.end(), more.begin(), more.end());
  Groups many{"many groups", {}, 2100, false, false};
  for (int64_t g = 0; g < 2500; ++g) many.values.push_back(g % 7 == 3 ? 4 : g % 5 == 0 ? 1 : 0);
  cases.push_back(many);
  // Every number of steps of 16 rows that a tile of 128 features by up to 256 rows can have, and that a
  // group's last block of 64 can.
  Groups steps{"every number of steps", {}, 2200, false, false};
  for (int64_t g = 0; g < 16; ++g) steps.values.push_back(g * 16 + 1 + g * 5 % 16);
  cases.push_back(steps);
  return cases;
}

Call::~Call() {
  for (const Buffer& buffer : buffers_) SANITIZE_CUDA(cudaFree(buffer.base));
}

const grouped_tensor* Call::add(const char* name, const Array& array, bool is_output) {
  Buffer& buffer = buffers_.emplace_back();
  buffer.initial = array;
  buffer.is_output = is_output;
  buffer.base = guarded_malloc(array.bytes.size());
  SANITIZE_CUDA(
      cudaMemcpy(contents(buffer.base), array.bytes.data(), array.bytes.size(), cudaMemcpyHostToDevice));
  grouped_tensor& tensor = buffer.tensor;
  tensor = grouped_tensor{};
  tensor.name = name;
  tensor.data = contents(buffer.base);
  tensor.dtype = array.dtype;
  tensor.rank = static_cast<int32_t>(array.shape.size());
  int64_t stride = 1;
  for (int d = tensor.rank - 1; d >= 0; --d) {
    tensor.shape[d] = array.shape[d];
    tensor.strides[d] = stride;
    stride *= array.shape[d];
  }
  tensor.device = 0;
  return &tensor;
}

Array Call::download(const Buffer& buffer) {
  Array array = buffer.initial;
  SANITIZE_CUDA(
      cudaMemcpy(array.bytes.data(), contents(buffer.base), array.bytes.size(), cudaMemcpyDeviceToHost));
  return array;
}

void Call::check_guards(const Buffer& buffer) {
  if (!guards_hold(buffer.base, buffer.initial.bytes.size())) {
    report_.fail(std::string("wrote outside ") + buffer.tensor.name);
  }
}

bool Call::run(int op, int dtype, int64_t K, int64_t N, int64_t G,
               const std::function<int32_t(const grouped_launch*, grouped_status*)>& launch) {
  grouped_workspace_query query{};
  query.struct_size = sizeof(query);
  query.op = op;
  query.dtype = dtype;
  query.device = 0;
  query.K = K;
  query.N = N;
  query.G = G;
  const size_t workspace_size = grouped_workspace_size(&query);
  void* workspace = guarded_malloc(workspace_size);
  bool ok = true;
  for (int turn = 0; turn < 2 && ok; ++turn) {
    for (const Buffer& b : buffers_) {
      if (!b.is_output) continue;
      SANITIZE_CUDA(cudaMemcpy(contents(b.base), b.initial.bytes.data(), b.initial.bytes.size(),
                               cudaMemcpyHostToDevice));
    }
    SANITIZE_CUDA(cudaMemset(contents(workspace), turn == 0 ? 0xff : 0x5a, workspace_size));
    grouped_launch settings{};
    settings.workspace = contents(workspace);
    settings.workspace_size = workspace_size;
    grouped_status status{};
    status.struct_size = sizeof(status);
    if (launch(&settings, &status) != GROUPED_OK) {
      report_.fail(std::string("returned ") + std::to_string(status.code) + ": " + status.message);
      ok = false;
    }
    SANITIZE_CUDA(cudaDeviceSynchronize());
    size_t index = 0;
    for (const Buffer& b : buffers_) {
      check_guards(b);
      const Array now = download(b);
      if (!b.is_output) {
        if (now.bytes != b.initial.bytes) report_.fail(std::string("wrote to the input ") + b.tensor.name);
      } else if (turn == 0) {
        results_.push_back(now);
        report_.digest(now);
      } else {
        expect_same_bytes(report_, "second run", results_[index++], now, 0, now.count());
      }
    }
    if (!guards_hold(workspace, workspace_size)) report_.fail("wrote outside the workspace");
  }
  SANITIZE_CUDA(cudaFree(workspace));
  return ok;
}

void expect_close(Report& report, const char* what, const Array& result, int64_t begin, int64_t end,
                  const std::vector<double>& reference, const std::vector<double>& slack) {
  for (int64_t i = begin; i < end; ++i) {
    const double y = result.get(i);
    const double ref = reference[i];
    const double allowed = half_ulp(result.dtype, std::max(std::fabs(y), std::fabs(ref))) + slack[i];
    if (std::fabs(y - ref) <= allowed) continue;
    char text[200];
    std::snprintf(text, sizeof(text), "%s[%lld] = %.9g, expected %.9g within %.3g", what,
                  static_cast<long long>(i), y, ref, allowed);
    report.fail(text);
  }
}

void expect_same_bytes(Report& report, const char* what, const Array& a, const Array& b, int64_t begin,
                       int64_t end) {
  const int64_t size = size_of(a.dtype);
  for (int64_t i = begin; i < end; ++i) {
    if (std::memcmp(a.bytes.data() + i * size, b.bytes.data() + i * size, size) == 0) continue;
    char text[200];
    std::snprintf(text, sizeof(text), "%s: element %lld is %.9g and %.9g", what, static_cast<long long>(i),
                  a.get(i), b.get(i));
    report.fail(text);
    return;
  }
}

void expect_tail(Report& report, const Array& result, const Array& initial, int64_t begin, bool zeroed) {
  Array expected = initial;
  if (zeroed) std::memset(expected.bytes.data(), 0, expected.bytes.size());
  expect_same_bytes(report, zeroed ? "tail is not zeroed" : "tail was written", result, expected, begin,
                    result.count());
}

}  // namespace sanitize
