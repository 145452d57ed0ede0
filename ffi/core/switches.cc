// SPDX-License-Identifier: Apache-2.0
#include "core/switches.h"

#include <cstdlib>
#include <cstring>

namespace grouped {
namespace {

bool is_on(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && std::strcmp(value, "") != 0 && std::strcmp(value, "0") != 0;
}

TestKernels read_test_kernels() {
  const char* value = std::getenv("GROUPED_TEST_KERNELS");
  if (value == nullptr) return TestKernels::kAny;
  if (std::strcmp(value, "portable") == 0) return TestKernels::kPortable;
  if (std::strcmp(value, "turns") == 0) return TestKernels::kTurns;
  if (std::strcmp(value, "buffers") == 0) return TestKernels::kBuffers;
  if (std::strcmp(value, "share") == 0) return TestKernels::kShare;
  if (std::strcmp(value, "lines") == 0) return TestKernels::kLines;
  return TestKernels::kAny;
}

const bool kCheck = is_on("GROUPED_CHECK");
const bool kLog = is_on("GROUPED_LOG");
const TestKernels kTestKernels = read_test_kernels();

}  // namespace

bool check_switch() { return kCheck; }
bool log_switch() { return kLog; }
TestKernels test_kernels() { return kTestKernels; }

}  // namespace grouped
