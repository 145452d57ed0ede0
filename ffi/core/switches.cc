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

const bool kCheck = is_on("GROUPED_CHECK");
const bool kLog = is_on("GROUPED_LOG");

}  // namespace

bool check_switch() { return kCheck; }
bool log_switch() { return kLog; }

}  // namespace grouped
