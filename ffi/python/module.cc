// SPDX-License-Identifier: Apache-2.0
// The nanobind module grouped_core._core: raw pointers and numbers in, grouped.h called, exceptions out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "doors/operation_call.h"
#include "python/direct_calls.h"
#include "python/options.h"
#include "python/thread_pool.h"
#include "xla/handlers.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace grouped::python_door {
namespace {

using doors::kMaxArguments;

// A tensor as Python hands it over: (name, address, dtype, shape, strides or None, device, flags).
struct Tensor {
  std::string name;
  grouped_tensor c = {};
};

void read_tensor(nb::handle given, Tensor* t) {
  const auto fields = nb::cast<nb::tuple>(given);
  if (nb::len(fields) != 7)
    throw nb::value_error("a tensor is (name, address, dtype, shape, strides, device, flags)");
  t->name = nb::cast<std::string>(fields[0]);
  t->c.name = t->name.empty() ? nullptr : t->name.c_str();
  t->c.data = reinterpret_cast<void*>(nb::cast<uintptr_t>(fields[1]));
  t->c.dtype = nb::cast<int32_t>(fields[2]);
  const auto shape = nb::cast<nb::tuple>(fields[3]);
  t->c.rank = static_cast<int32_t>(nb::len(shape));
  const bool has_strides = !fields[4].is_none();
  int64_t stride = 1;
  for (int32_t i = t->c.rank - 1; i >= 0 && t->c.rank <= GROUPED_MAX_RANK; --i) {
    t->c.shape[i] = nb::cast<int64_t>(shape[i]);
    t->c.strides[i] = has_strides ? nb::cast<int64_t>(fields[4][i]) : stride;
    stride *= t->c.shape[i];
  }
  t->c.device = nb::cast<int32_t>(fields[5]);
  t->c.flags = nb::cast<uint32_t>(fields[6]);
}

struct Tensors {
  Tensor storage[kMaxArguments];
  const grouped_tensor* list[kMaxArguments] = {};

  explicit Tensors(const nb::tuple& given) {
    if (nb::len(given) > kMaxArguments) throw nb::value_error("too many tensors");
    int i = 0;
    for (nb::handle item : given) {
      if (!item.is_none()) {
        read_tensor(item, &storage[i]);
        list[i] = &storage[i].c;
      }
      ++i;
    }
  }
};

void raise_if_failed(int32_t code, const char* message) {
  switch (code) {
    case GROUPED_OK:
      return;
    case GROUPED_BAD_VALUE:
      throw nb::value_error(message);
    case GROUPED_BAD_TYPE:
      throw nb::type_error(message);
    case GROUPED_UNSUPPORTED:
      PyErr_SetString(PyExc_NotImplementedError, message);
      throw nb::python_error();
    default:
      throw std::runtime_error(message);
  }
}

void check(int32_t op, const nb::tuple& tensors, const nb::tuple& options) {
  const Tensors t(tensors);
  grouped_status status = {};
  raise_if_failed(doors::call_operation(op, t.list, read_options(options), nullptr, &status), status.message);
}

void run(int32_t op, const nb::tuple& tensors, const nb::tuple& options, uintptr_t workspace,
         size_t workspace_size, uintptr_t stream, int32_t num_threads) {
  const Tensors t(tensors);
  const doors::Options o = read_options(options);
  const grouped_executor executor = pool_executor(num_threads);
  const grouped_launch launch = {num_threads > 1 ? &executor : nullptr, reinterpret_cast<void*>(workspace),
                                 workspace_size, reinterpret_cast<void*>(stream)};
  grouped_status status = {};
  int32_t code;
  {
    nb::gil_scoped_release without_gil;
    code = doors::call_operation(op, t.list, o, &launch, &status);
  }
  raise_if_failed(code, status.message);
}

nb::list argument_dims(int32_t op, int32_t weight_layout) {
  nb::list found;
  const char* name = nullptr;
  for (int32_t i = 0; const char* dims = grouped_argument_dims(op, weight_layout, i, &name); ++i) {
    found.append(nb::make_tuple(name, dims));
  }
  return found;
}

size_t workspace_size(int32_t op, int32_t dtype, int32_t device, int64_t K, int64_t N, int64_t G) {
  const grouped_workspace_query query = {sizeof(query), op, dtype, device, 0, K, N, G};
  return grouped_workspace_size(&query);
}

nb::dict xla_registrations(bool is_cuda, bool capturable) {
  nb::dict result;
  for (const auto& r : xla_door::registrations(is_cuda, capturable))
    result[r.target] = nb::capsule(r.handler);
  return result;
}

}  // namespace
}  // namespace grouped::python_door

NB_MODULE(_core, m) {
  using namespace grouped::python_door;
  // What is registered with a framework's dispatcher lives to the end of the process, and is not lost.
  nb::set_leak_warnings(false);
  m.doc() = "The grouped-GEMM core on raw addresses. Use jax_grouped or torch_grouped.";
  m.def("check", &check, "op"_a, "tensors"_a, "options"_a, "The rules of `op`, without running it.");
  m.def("run", &run, "op"_a, "tensors"_a, "options"_a, "workspace"_a, "workspace_size"_a, "stream"_a,
        "num_threads"_a, "Checks, then launches `op`.");
  nb::class_<DirectCalls>(m, "DirectCalls",
                          "Operations on tensor objects that offer DLPack's C exchange interface.")
      .def(nb::init<const nb::capsule&, const nb::tuple&, nb::handle>(), "exchange"_a, "classes"_a,
           "quick_memory"_a = nb::none())
      .def("check", &DirectCalls::check, "op"_a, "tensors"_a, "options"_a, "Whether the rules of `op` hold.")
      .def("run", &DirectCalls::run, "op"_a, "tensors"_a, "options"_a, "num_threads"_a,
           "Whether `op` ran; if not, nothing was written, and `run` on descriptions tells why.")
      .def("create", &DirectCalls::create, "op"_a, "operands"_a, "options"_a, "num_threads"_a, "turned"_a,
           "The result of `op`, its last argument, as a new tensor; None if `op` did not run.");
  m.def("argument_dims", &argument_dims, "op"_a, "weight_layout"_a,
        "[(name, dims as letters)] of the arguments of `op`, in the order in which `run` takes them.");
  m.def("workspace_size", &workspace_size, "op"_a, "dtype"_a, "device"_a, "K"_a, "N"_a, "G"_a,
        "Bytes of workspace that `op` needs, at any T.");
  m.def("call_count", &grouped_call_count, "op"_a, "Calls of `op` that reached a backend in this process.");
  m.def("version", &grouped_version);
  m.def("abi_version", &grouped_abi_version);
  m.def("has_cuda", [] { return grouped_has_cuda() != 0; }, "Built with the CUDA kernels.");
  m.def("check_enabled", [] { return grouped_check_enabled() != 0; }, "GROUPED_CHECK was set at import.");
  m.def("xla_registrations", &xla_registrations, "is_cuda"_a, "capturable"_a,
        "{target name: handler capsule}");
  m.def(
      "xla_ffi_version",
      [] { return nb::make_tuple(grouped::xla_door::ffi_api_major(), grouped::xla_door::ffi_api_minor()); },
      "The XLA FFI version the handlers were compiled against.");
}
