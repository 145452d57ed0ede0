// SPDX-License-Identifier: Apache-2.0
// Small types that every room of the core shares.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "grouped/grouped.h"

namespace grouped {

enum class DType : int32_t {
  kF16 = GROUPED_F16,
  kBF16 = GROUPED_BF16,
  kF32 = GROUPED_F32,
  kF64 = GROUPED_F64,
};

constexpr int64_t size_of(DType t) { return t == DType::kF64 ? 8 : t == DType::kF32 ? 4 : 2; }

// What sums of this dtype are kept in.
constexpr DType accumulator_of(DType t) { return t == DType::kF64 ? DType::kF64 : DType::kF32; }

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(int32_t code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == GROUPED_OK; }
  int32_t code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  int32_t code_ = GROUPED_OK;
  std::string message_;
};

}  // namespace grouped
