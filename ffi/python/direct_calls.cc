// SPDX-License-Identifier: Apache-2.0
#include "python/direct_calls.h"

#include <nanobind/ndarray.h>

#include "python/options.h"
#include "python/thread_pool.h"

namespace nb = nanobind;

namespace grouped::python_door {

using nb::dlpack::dltensor;

// The layout that DLPack 1.x fixes for its exchange interface and for what its allocator returns.
struct DlpackVersion {
  uint32_t major, minor;
};
struct DlpackManaged {
  DlpackVersion version;
  void* context;
  void (*deleter)(DlpackManaged*);
  uint64_t flags;
  dltensor tensor;
};
struct DlpackExchange {
  DlpackVersion version;
  DlpackExchange* older;
  int (*allocate)(dltensor* prototype, DlpackManaged** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, DlpackManaged** out);
  int (*managed_to_object)(DlpackManaged* tensor, void** out);
  int (*tensor_from_object)(void* object, dltensor* out);
  int (*current_stream)(int32_t device_type, int32_t device, void** out);
};

namespace {

constexpr uint32_t kDlpackMajor = 1;

int32_t dtype_code(const nb::dlpack::dtype& t) {
  using Code = nb::dlpack::dtype_code;
  const auto code = static_cast<Code>(t.code);
  if (t.lanes != 1) return GROUPED_OTHER;
  if (code == Code::Bfloat && t.bits == 16) return GROUPED_BF16;
  if (code == Code::Float) {
    if (t.bits == 16) return GROUPED_F16;
    if (t.bits == 32) return GROUPED_F32;
    if (t.bits == 64) return GROUPED_F64;
  }
  if (code == Code::Int && t.bits == 32) return GROUPED_I32;
  if (code == Code::Int && t.bits == 64) return GROUPED_I64;
  return GROUPED_OTHER;
}

// False for a tensor that only the described call knows how to speak of.
bool convert(const dltensor& from, grouped_tensor* to) {
  const bool on_cpu = from.device.device_type == nb::device::cpu::value;
  if (!on_cpu && from.device.device_type != nb::device::cuda::value) return false;
  to->dtype = dtype_code(from.dtype);
  if (to->dtype == GROUPED_OTHER || from.ndim > GROUPED_MAX_RANK || from.strides == nullptr) return false;
  to->data = static_cast<char*>(from.data) + from.byte_offset;
  to->rank = from.ndim;
  int64_t count = 1;
  for (int32_t i = 0; i < from.ndim; ++i) {
    count *= from.shape[i];
    to->shape[i] = from.shape[i];
    to->strides[i] = from.strides[i];
  }
  // The imaginary part of a conjugate is negated when read, which its address does not tell. Such a view is
  // strided, and so refused by the rules, unless it has one element.
  const bool is_float = to->dtype >= GROUPED_F16 && to->dtype <= GROUPED_F64;
  if (is_float && count == 1) return false;
  to->device = on_cpu ? static_cast<int32_t>(GROUPED_DEVICE_CPU) : from.device.device_id;
  return true;
}

// Scratch memory from the framework's allocator, which knows what a later call on the same stream may reuse.
class Workspace {
 public:
  ~Workspace() {
    if (memory_ != nullptr) memory_->deleter(memory_);
  }
  bool allocate(const DlpackExchange& exchange, const nb::dlpack::device& device, size_t bytes) {
    if (bytes == 0) return true;
    int64_t shape = static_cast<int64_t>(bytes), stride = 1;
    dltensor prototype = {};
    prototype.device = device;
    prototype.ndim = 1;
    prototype.dtype = nb::dtype<uint8_t>();
    prototype.shape = &shape;
    prototype.strides = &stride;
    return exchange.allocate(&prototype, &memory_, nullptr, [](void*, const char*, const char*) {}) == 0;
  }
  void* data() const {
    return memory_ == nullptr ? nullptr
                              : static_cast<char*>(memory_->tensor.data) + memory_->tensor.byte_offset;
  }

 private:
  DlpackManaged* memory_ = nullptr;
};

size_t workspace_size(int32_t op, const grouped_tensor* const* tensors, int32_t weight_layout) {
  // The dtype that the query asks for is the first argument's, but for the one operation that may narrow it.
  const grouped_tensor* like = op == GROUPED_OP_ROW_SCALE ? tensors[3] : tensors[0];
  if (like == nullptr) return 0;
  grouped_workspace_query query = {sizeof(query), op, like->dtype, like->device, 0, 0, 0, 0};
  for (int32_t i = 0; i < doors::kMaxArguments; ++i) {
    const char* letters = grouped_argument_dims(op, weight_layout, i, nullptr);
    if (letters == nullptr) break;
    for (int32_t d = 0; tensors[i] != nullptr && d < tensors[i]->rank && letters[d] != '\0'; ++d) {
      const int64_t size = tensors[i]->shape[d];
      if (letters[d] == 'K') query.K = size;
      if (letters[d] == 'N') query.N = size;
      if (letters[d] == 'G') query.G = size;
    }
  }
  return grouped_workspace_size(&query);
}

}  // namespace

struct DirectCalls::Arguments {
  grouped_tensor storage[doors::kMaxArguments] = {};
  const grouped_tensor* list[doors::kMaxArguments] = {};
  nb::dlpack::device device = {};  // of the first tensor
};

DirectCalls::DirectCalls(const nb::capsule& exchange, const nb::tuple& classes)
    : exchange_(static_cast<const DlpackExchange*>(exchange.data("dlpack_exchange_api"))),
      requires_grad_(nb::steal(PyUnicode_InternFromString("requires_grad"))) {
  // A framework may offer newer versions first and older ones behind them.
  while (exchange_ != nullptr && exchange_->version.major != kDlpackMajor) exchange_ = exchange_->older;
  if (exchange_ == nullptr) throw nb::value_error("the framework speaks no version 1 of DLPack");
  for (nb::handle c : classes) classes_.push_back(nb::borrow(c));
}

bool DirectCalls::is_served(nb::handle tensor) const {
  const nb::handle type = tensor.type();
  for (const nb::object& c : classes_) {
    if (type.is(c)) return true;
  }
  return false;
}

bool DirectCalls::read(const nb::tuple& tensors, Arguments* arguments) const {
  if (nb::len(tensors) > doors::kMaxArguments) return false;
  bool is_first = true;
  int i = 0;
  for (nb::handle item : tensors) {
    if (!item.is_none()) {
      dltensor given;
      if (!is_served(item)) return false;
      if (exchange_->tensor_from_object(item.ptr(), &given) != 0) {
        PyErr_Clear();
        return false;
      }
      if (!convert(given, &arguments->storage[i])) return false;
      const nb::object requires_grad = nb::steal(PyObject_GetAttr(item.ptr(), requires_grad_.ptr()));
      if (requires_grad.is(Py_True)) arguments->storage[i].flags = GROUPED_TENSOR_REQUIRES_GRAD;
      arguments->list[i] = &arguments->storage[i];
      if (is_first) arguments->device = given.device;
      is_first = false;
    }
    ++i;
  }
  return !is_first;
}

bool DirectCalls::check(int32_t op, const nb::tuple& tensors, const nb::tuple& options) const {
  Arguments arguments;
  if (!read(tensors, &arguments)) return false;
  return doors::call_operation(op, arguments.list, read_options(options), nullptr, nullptr) == GROUPED_OK;
}

bool DirectCalls::run(int32_t op, const nb::tuple& tensors, const nb::tuple& options,
                      int32_t num_threads) const {
  Arguments arguments;
  if (!read(tensors, &arguments)) return false;
  const doors::Options o = read_options(options);
  const size_t bytes = workspace_size(op, arguments.list, o.weight_layout);
  void* stream = nullptr;
  Workspace workspace;
  if (arguments.device.device_type == nb::device::cuda::value &&
      exchange_->current_stream(arguments.device.device_type, arguments.device.device_id, &stream) != 0) {
    PyErr_Clear();
    return false;
  }
  if (!workspace.allocate(*exchange_, arguments.device, bytes)) {
    PyErr_Clear();
    return false;
  }
  const grouped_executor executor = pool_executor(num_threads);
  const grouped_launch launch = {num_threads > 1 ? &executor : nullptr, workspace.data(), bytes, stream};
  const nb::gil_scoped_release without_gil;
  return doors::call_operation(op, arguments.list, o, &launch, nullptr) == GROUPED_OK;
}

}  // namespace grouped::python_door
