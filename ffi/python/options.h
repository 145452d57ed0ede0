// SPDX-License-Identifier: Apache-2.0
// The options of an operation as Python hands them over.
#pragma once

#include <nanobind/nanobind.h>

#include "doors/operation_call.h"

namespace grouped::python_door {

// (weight_layout, sizes_kind, tail, accumulate, kind, gate_layout, alpha, limit, offset)
inline doors::Options read_options(const nanobind::tuple& o) {
  namespace nb = nanobind;
  if (nb::len(o) != 9) throw nb::value_error("options are nine numbers");
  const auto number = [&](int i) { return nb::cast<int32_t>(o[i]); };
  return {number(0),
          number(1),
          number(2),
          number(3),
          {number(4), number(5), nb::cast<double>(o[6]), nb::cast<double>(o[7]), nb::cast<double>(o[8])}};
}

}  // namespace grouped::python_door
