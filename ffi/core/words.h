// SPDX-License-Identifier: Apache-2.0
// How messages call dtypes, devices and shapes.
#pragma once

#include "core/rules.h"

namespace grouped {

const char* dtype_words(int32_t dtype);
std::string dtype_rule_words(DTypeRule rule, int32_t base, int32_t row_scale);
std::string device_words(int32_t device);
std::string list_words(const int64_t* values, int32_t count);  // "[8, 64]"
std::string given_words(const grouped_tensor& tensor);         // "[8, 64] bf16"

}  // namespace grouped
