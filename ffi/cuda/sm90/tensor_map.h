// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what the copy engine must know of an array, encoded by the driver on the host for each call.
// Contiguous arrays, 128-byte swizzle, zeros outside.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/types.h"

namespace grouped::cuda::sm90 {

// Adds maps until one fails; status() is then its sentence.
class TensorMaps {
 public:
  explicit TensorMaps(DType dtype) : dtype_(dtype) {}

  // `dims` and `box` in elements, the contiguous dimension first; two or three of them.
  void add(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
           std::initializer_list<int> box) {
    add(map, data, dims, box, dtype_);
  }
  void add(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
           std::initializer_list<int> box, DType dtype);

  const Status& status() const { return status_; }

 private:
  void fail(const std::string& what);

  DType dtype_;
  Status status_;
};

}  // namespace grouped::cuda::sm90
