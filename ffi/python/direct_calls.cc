// SPDX-License-Identifier: Apache-2.0
#include "python/direct_calls.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <utility>

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

nb::object tuple_of(const int64_t* values, int32_t count) {
  nb::object tuple = nb::steal(PyTuple_New(count));
  for (int32_t i = 0; tuple.is_valid() && i < count; ++i) {
    PyObject* value = PyLong_FromLongLong(values[i]);
    if (value == nullptr) return nb::object();
    PyTuple_SetItem(tuple.ptr(), i, value);
  }
  return tuple;
}

// Scratch memory for one call: on CPU its own if it suffices, else from the framework's allocator, which
// knows what a later call on the same stream may reuse.
class Workspace {
 public:
  Workspace(const DlpackExchange& exchange, const nb::dlpack::device& device)
      : exchange_(exchange), device_(device) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (memory_ != nullptr) memory_->deleter(memory_);
  }
  WorkspaceSource source() {
    return {[](void* self, size_t bytes) { return static_cast<Workspace*>(self)->allocate(bytes); }, this};
  }

 private:
  void* allocate(size_t bytes) {
    if (device_.device_type == nb::device::cpu::value && bytes <= sizeof(own_)) return own_;
    int64_t shape = static_cast<int64_t>(bytes), stride = 1;
    dltensor prototype = {};
    prototype.device = device_;
    prototype.ndim = 1;
    prototype.dtype = nb::dtype<uint8_t>();
    prototype.shape = &shape;
    prototype.strides = &stride;
    const int failed =
        exchange_.allocate(&prototype, &memory_, nullptr, [](void*, const char*, const char*) {});
    return failed ? nullptr : static_cast<char*>(memory_->tensor.data) + memory_->tensor.byte_offset;
  }

  const DlpackExchange& exchange_;
  const nb::dlpack::device device_;
  DlpackManaged* memory_ = nullptr;
  alignas(16) char own_[4096];
};

}  // namespace

struct DirectCalls::Arguments {
  grouped_tensor storage[doors::kMaxArguments] = {};
  const grouped_tensor* list[doors::kMaxArguments] = {};
  nb::dlpack::device device = {};  // of the first tensor
};

DirectCalls::DirectCalls(const nb::capsule& exchange, const nb::tuple& classes, nb::handle quick_memory)
    : exchange_(static_cast<const DlpackExchange*>(exchange.data("dlpack_exchange_api"))),
      requires_grad_(nb::steal(PyUnicode_InternFromString("requires_grad"))),
      new_empty_(nb::steal(PyUnicode_InternFromString("new_empty"))) {
  // A framework may offer newer versions first and older ones behind them.
  while (exchange_ != nullptr && exchange_->version.major != kDlpackMajor) exchange_ = exchange_->older;
  if (exchange_ == nullptr) throw nb::value_error("the framework speaks no version 1 of DLPack");
  for (nb::handle c : classes) classes_.push_back(nb::borrow(c));
  if (quick_memory.is_none()) return;
  const auto given = nb::cast<nb::tuple>(quick_memory);
  if (nb::len(given) != 4)
    throw nb::value_error("quick memory is (on a CPU, on CUDA, current device, dtypes)");
  quick_memory_.on_cpu = given[0];
  quick_memory_.on_cuda = given[1];
  quick_memory_.current_device = given[2];
  for (int32_t code = GROUPED_F16; code <= GROUPED_F64; ++code) quick_memory_.dtypes[code] = given[3][code];
}

const nb::object* DirectCalls::quick_memory_for(const grouped_tensor& like) const {
  const bool on_cpu = like.device == GROUPED_DEVICE_CPU;
  const nb::object* function = on_cpu ? &quick_memory_.on_cpu : &quick_memory_.on_cuda;
  const bool has_dtype = like.dtype >= GROUPED_F16 && like.dtype <= GROUPED_F64;
  if (!function->is_valid() || function->is_none() || !has_dtype) return nullptr;
  if (on_cpu) return function;
  const nb::object current = nb::steal(PyObject_CallNoArgs(quick_memory_.current_device.ptr()));
  if (current.is_valid() && PyLong_AsLong(current.ptr()) == like.device) return function;
  PyErr_Clear();
  return nullptr;
}

bool DirectCalls::is_served(nb::handle tensor) const {
  const nb::handle type = tensor.type();
  for (const nb::object& c : classes_) {
    if (type.is(c)) return true;
  }
  return false;
}

bool DirectCalls::read_one(nb::handle tensor, int place, Arguments* arguments) const {
  dltensor given;
  if (!is_served(tensor)) return false;
  if (exchange_->tensor_from_object(tensor.ptr(), &given) != 0) {
    PyErr_Clear();
    return false;
  }
  if (!convert(given, &arguments->storage[place])) return false;
  arguments->list[place] = &arguments->storage[place];
  arguments->device = given.device;
  return true;
}

bool DirectCalls::read(const nb::tuple& tensors, Arguments* arguments) const {
  const int count = static_cast<int>(nb::len(tensors));
  if (count > doors::kMaxArguments) return false;
  for (int i = count - 1; i >= 0; --i) {  // backwards, so that the device is the first one's
    const nb::handle item = tensors[i];
    if (!item.is_none() && !read_one(item, i, arguments)) return false;
  }
  if (count == 0 || arguments->list[0] == nullptr) return false;
  for (int i = 1; i < count; ++i) {
    // Sizes in host memory are common, and refused later only after a result has been allocated.
    if (arguments->list[i] != nullptr && arguments->list[i]->device != arguments->list[0]->device)
      return false;
  }
  return true;
}

void DirectCalls::read_flags(int32_t op, const nb::tuple& tensors, Arguments* arguments) const {
  for (int i = 0; i < static_cast<int>(nb::len(tensors)); ++i) {
    if (arguments->list[i] == nullptr || !doors::is_buffer(op, i)) continue;
    const nb::object flag = nb::steal(PyObject_GetAttr(nb::handle(tensors[i]).ptr(), requires_grad_.ptr()));
    if (flag.is(Py_True)) arguments->storage[i].flags = GROUPED_TENSOR_REQUIRES_GRAD;
  }
}

bool DirectCalls::launch(int32_t op, const Arguments& arguments, const doors::Options& options,
                         int32_t num_threads) const {
  void* stream = nullptr;
  if (arguments.device.device_type == nb::device::cuda::value &&
      exchange_->current_stream(arguments.device.device_type, arguments.device.device_id, &stream) != 0) {
    PyErr_Clear();
    return false;
  }
  Workspace workspace(*exchange_, arguments.device);
  const WorkspaceSource source = workspace.source();
  const grouped_executor executor = pool_executor(num_threads);
  const grouped_launch launch = {num_threads > 1 ? &executor : nullptr, nullptr, 0, stream};
  const nb::gil_scoped_release without_gil;
  return doors::call_operation(op, arguments.list, options, &launch, nullptr, &source) == GROUPED_OK;
}

bool DirectCalls::check(int32_t op, const nb::tuple& tensors, const nb::tuple& options) const {
  Arguments arguments;
  if (!read(tensors, &arguments)) return false;
  read_flags(op, tensors, &arguments);
  return doors::call_operation(op, arguments.list, read_options(options), nullptr, nullptr) == GROUPED_OK;
}

bool DirectCalls::run(int32_t op, const nb::tuple& tensors, const nb::tuple& options,
                      int32_t num_threads) const {
  Arguments arguments;
  if (!read(tensors, &arguments)) return false;
  read_flags(op, tensors, &arguments);
  return launch(op, arguments, read_options(options), num_threads);
}

nb::object DirectCalls::new_tensor(nb::handle like, const grouped_tensor& t, const int64_t* shape,
                                   int32_t rank) const {
  const nb::object sizes = tuple_of(shape, rank);
  if (!sizes.is_valid()) return sizes;
  const nb::object* quickly = quick_memory_for(t);
  if (quickly == nullptr) {
    PyObject* call[] = {like.ptr(), sizes.ptr()};
    return nb::steal(PyObject_VectorcallMethod(new_empty_.ptr(), call, 2, nullptr));
  }
  int64_t steps[GROUPED_MAX_RANK], step = 1;
  for (int32_t d = rank - 1; d >= 0; --d) {
    steps[d] = step;
    step *= std::max<int64_t>(shape[d], 1);
  }
  const nb::object strides = tuple_of(steps, rank);
  if (!strides.is_valid()) return strides;
  PyObject* call[] = {sizes.ptr(), strides.ptr(), quick_memory_.dtypes[t.dtype].ptr()};
  return nb::steal(PyObject_Vectorcall(quickly->ptr(), call, 3, nullptr));
}

nb::object DirectCalls::create(int32_t op, const nb::tuple& operands, const nb::tuple& options,
                               int32_t num_threads, int32_t turned) const {
  const int place = static_cast<int>(nb::len(operands));  // the result's
  Arguments arguments;
  if (place >= doors::kMaxArguments || !read(operands, &arguments)) return nb::none();
  doors::Options o = read_options(options);
  if (turned >= 0 && turned < place) {
    grouped_tensor& t = arguments.storage[turned];
    if (t.rank < 2) return nb::none();
    if (op == GROUPED_OP_MM && doors::is_contiguous(t)) {
      o.weight_layout = 1 - o.weight_layout;
    } else {
      std::swap(t.shape[t.rank - 1], t.shape[t.rank - 2]);
      std::swap(t.strides[t.rank - 1], t.strides[t.rank - 2]);
    }
  }
  int64_t shape[GROUPED_MAX_RANK];
  const int32_t rank = doors::shape_of(op, place, arguments.list, o, shape);
  if (rank < 0) return nb::none();
  const nb::object result = new_tensor(operands[0], arguments.storage[0], shape, rank);
  if (!result.is_valid()) {
    PyErr_Clear();
    return nb::none();
  }
  if (!read_one(result, place, &arguments) || !launch(op, arguments, o, num_threads)) return nb::none();
  return result;
}

}  // namespace grouped::python_door
