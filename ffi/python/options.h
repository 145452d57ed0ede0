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
  // Asked of Python itself: nine casts would cost as much as a tensor.
  const auto number = [&](int i) {
    const long value = PyLong_AsLong(PyTuple_GetItem(o.ptr(), i));
    if (value == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
    if (value != static_cast<int32_t>(value)) throw nb::value_error("an option fits 32 bits");
    return static_cast<int32_t>(value);
  };
  const auto real = [&](int i) {
    const double value = PyFloat_AsDouble(PyTuple_GetItem(o.ptr(), i));
    if (value == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
    return value;
  };
  return {number(0), number(1), number(2), number(3), {number(4), number(5), real(6), real(7), real(8)}};
}

}  // namespace grouped::python_door
