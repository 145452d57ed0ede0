// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what the copy engine must know of an array, encoded by the driver on the host for each call.
// Zeros outside.
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
  // `pairs_lines`: what lies beside a box's lines of 128 bytes is needed at once, so L2 fetches both.
  // Elsewhere it would cross between the two halves of L2 more than once.
  TensorMaps(DType dtype, bool pairs_lines) : dtype_(dtype), pairs_lines_(pairs_lines) {}

  // `dims` and `box` in elements, the contiguous dimension first. `line_bytes`: of the box in shared memory,
  // 128 or 64, swizzled likewise.
  void add(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
           std::initializer_list<int> box) {
    add(map, data, dims, box, dtype_);
  }
  void add(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
           std::initializer_list<int> box, DType dtype, int line_bytes = 128);

  // Dimensions that do not lie one in the other: `strides` in elements, of all but the first.
  void add_panels(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
                  std::initializer_list<int64_t> strides, std::initializer_list<int> box) {
    add_panels(map, data, dims, strides, box, dtype_);
  }
  void add_panels(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims,
                  std::initializer_list<int64_t> strides, std::initializer_list<int> box, DType dtype);

  const Status& status() const { return status_; }

 private:
  void fail(const std::string& what);
  void encode(CUtensorMap* map, const void* data, std::initializer_list<int64_t> dims, const int64_t* strides,
              std::initializer_list<int> box, DType dtype, int line_bytes);

  DType dtype_;
  bool pairs_lines_;
  Status status_;
};

}  // namespace grouped::cuda::sm90
