// SPDX-License-Identifier: Apache-2.0
// Operations on a framework's own tensor objects, without a description of each in Python.
//
// A framework that offers DLPack's C exchange interface fills in a plain structure per tensor, allocates the
// workspace and names its current stream, all through function pointers: nothing of it is linked.
// Whatever cannot be served this way, a broken rule included, is left to the described call, which runs the
// same rules and owns the words; so nothing here raises.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "doors/operation_call.h"

namespace grouped::python_door {

struct DlpackExchange;

class DirectCalls {
 public:
  // `exchange`: the capsule of the framework's tensor class. `classes`: the types whose instances are memory
  // and nothing else; an instance of a subclass is not served. `quick_memory`: (on a CPU, on CUDA, current
  // CUDA device, dtypes), the first two functions of sizes, strides and dtype that make a tensor with less
  // ado than the method new_empty, the second on the current device, the last the framework's dtypes by code;
  // or None.
  DirectCalls(const nanobind::capsule& exchange, const nanobind::tuple& classes,
              nanobind::handle quick_memory);

  // Whether the rules of `op` hold for these tensors.
  bool check(int32_t op, const nanobind::tuple& tensors, const nanobind::tuple& options) const;

  // Whether `op` ran.
  bool run(int32_t op, const nanobind::tuple& tensors, const nanobind::tuple& options,
           int32_t num_threads) const;

  // The result of `op`, an operation whose last argument is its only result, as a new tensor with the dtype
  // of the first operand; None if `op` did not run. `operands` are the arguments before it. The last two
  // dimensions of the one at place `turned` are read the other way round; -1 for none. The weight of a
  // product is read so unless it is contiguous as it is, when it has the other layout than the options say.
  nanobind::object create(int32_t op, const nanobind::tuple& operands, const nanobind::tuple& options,
                          int32_t num_threads, int32_t turned) const;

 private:
  struct Arguments;
  bool is_served(nanobind::handle tensor) const;
  bool read_one(nanobind::handle tensor, int place, Arguments* arguments) const;
  bool read(const nanobind::tuple& tensors, Arguments* arguments) const;
  // Whether the buffers among them require grad, which nothing may that is written into.
  void read_flags(int32_t op, const nanobind::tuple& tensors, Arguments* arguments) const;
  bool launch(int32_t op, const Arguments& arguments, const doors::Options& options,
              int32_t num_threads) const;

  // A new tensor on the device and with the dtype of `t`, which is what `like` was read as.
  nanobind::object new_tensor(nanobind::handle like, const grouped_tensor& t, const int64_t* shape,
                              int32_t rank) const;
  const nanobind::object* quick_memory_for(const grouped_tensor& like) const;  // null: there is none

  struct QuickMemory {
    nanobind::object on_cpu, on_cuda, current_device, dtypes[GROUPED_F64 + 1];
  };

  const DlpackExchange* exchange_;
  const nanobind::object requires_grad_, new_empty_;  // names of an attribute and of a method
  std::vector<nanobind::object> classes_;
  QuickMemory quick_memory_;
};

}  // namespace grouped::python_door
