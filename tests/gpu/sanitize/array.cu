// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "array.h"

namespace sanitize {
namespace {

template <typename T>
T load(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T>
void store(uint8_t* p, T v) {
  std::memcpy(p, &v, sizeof(v));
}

}  // namespace

int64_t size_of(int dtype) {
  switch (dtype) {
    case GROUPED_F16:
    case GROUPED_BF16:
      return 2;
    case GROUPED_F32:
    case GROUPED_I32:
      return 4;
    default:
      return 8;
  }
}

const char* name_of(int dtype) {
  switch (dtype) {
    case GROUPED_F16:
      return "f16";
    case GROUPED_BF16:
      return "bf16";
    case GROUPED_F32:
      return "f32";
    case GROUPED_F64:
      return "f64";
    case GROUPED_I32:
      return "i32";
    default:
      return "i64";
  }
}

double half_ulp(int dtype, double value) {
  if (!(std::fabs(value) < INFINITY)) return 0;
  const int digits = dtype == GROUPED_BF16 ? 8 : dtype == GROUPED_F16 ? 11 : dtype == GROUPED_F32 ? 24 : 53;
  const int smallest = dtype == GROUPED_BF16  ? -133
                       : dtype == GROUPED_F16 ? -24
                       : dtype == GROUPED_F32 ? -149
                                              : -1074;
  int exponent = smallest;
  if (value != 0) std::frexp(value, &exponent);
  return std::ldexp(0.5, std::max(exponent - digits, smallest));
}

Array::Array(int dtype_in, std::vector<int64_t> shape_in) : dtype(dtype_in), shape(std::move(shape_in)) {
  int64_t n = size_of(dtype);
  for (int64_t d : shape) n *= d;
  bytes.assign(static_cast<size_t>(n), 0xff);
}

double Array::get(int64_t i) const {
  const uint8_t* p = bytes.data() + i * size_of(dtype);
  switch (dtype) {
    case GROUPED_F16:
      return __half2float(load<__half>(p));
    case GROUPED_BF16:
      return __bfloat162float(load<__nv_bfloat16>(p));
    case GROUPED_F32:
      return load<float>(p);
    case GROUPED_F64:
      return load<double>(p);
    case GROUPED_I32:
      return load<int32_t>(p);
    default:
      return static_cast<double>(load<int64_t>(p));
  }
}

void Array::set(int64_t i, double value) {
  uint8_t* p = bytes.data() + i * size_of(dtype);
  switch (dtype) {
    case GROUPED_F16:
      return store(p, __double2half(value));
    case GROUPED_BF16:
      return store(p, __double2bfloat16(value));
    case GROUPED_F32:
      return store(p, static_cast<float>(value));
    case GROUPED_F64:
      return store(p, value);
    case GROUPED_I32:
      return store(p, static_cast<int32_t>(value));
    default:
      return store(p, static_cast<int64_t>(value));
  }
}

void Array::randomize(std::mt19937_64& rng, int64_t begin, int64_t end) {
  std::uniform_real_distribution<double> uniform(-1.0, 1.0);
  for (int64_t i = begin; i < end; ++i) set(i, uniform(rng));
}

}  // namespace sanitize
