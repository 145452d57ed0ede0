// SPDX-License-Identifier: Apache-2.0
#include "core/words.h"

namespace grouped {

const char* dtype_words(int32_t dtype) {
  // Indexed by the dtype codes of grouped.h.
  static constexpr const char* kNames[] = {"another dtype", "f16",  "bf16", "f32",  "f64",    "i32",
                                           "i64",           "bool", "i8",   "u8",   "i16",    "u16",
                                           "u32",           "u64",  "c64",  "c128", "f8e4m3", "f8e5m2"};
  constexpr int32_t kCount = sizeof(kNames) / sizeof(kNames[0]);
  static_assert(kCount == GROUPED_F8E5M2 + 1, "a name for every dtype code");
  return kNames[dtype >= 0 && dtype < kCount ? dtype : 0];
}

std::string dtype_rule_words(DTypeRule rule, int32_t base, int32_t row_scale) {
  const bool base_is_known = base >= GROUPED_F16 && base <= GROUPED_F64;
  switch (rule) {
    case DTypeRule::kBase:
      break;
    case DTypeRule::kSame:
      if (base_is_known) return dtype_words(base);
      break;
    case DTypeRule::kSameOrAccumulator:
      if (base == GROUPED_F32 || base == GROUPED_F64) return dtype_words(base);
      if (base_is_known) return std::string(dtype_words(base)) + " or f32";
      break;
    case DTypeRule::kSizes:
      return "i32 or i64";
    case DTypeRule::kRowScale:
      return std::string(dtype_words(row_scale)) + " as row_scale";
  }
  return "f16, bf16, f32 or f64";
}

std::string device_words(int32_t device) {
  if (device == GROUPED_DEVICE_CPU) return "cpu";
  return device == GROUPED_DEVICE_META ? "meta" : "cuda:" + std::to_string(device);
}

std::string list_words(const int64_t* values, int32_t count) {
  std::string text = "[";
  for (int32_t i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  return text + "]";
}

std::string given_words(const grouped_tensor& tensor) {
  const std::string shape = tensor.rank > GROUPED_MAX_RANK ? std::to_string(tensor.rank) + " dimensions"
                                                           : list_words(tensor.shape, tensor.rank);
  return shape + " " + dtype_words(tensor.dtype);
}

}  // namespace grouped
