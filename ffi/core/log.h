// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace grouped {

// Prints "grouped: <line>" to stderr the first time it is given this line. Callers ask log_switch() first.
void log_once(const std::string& line);

}  // namespace grouped
