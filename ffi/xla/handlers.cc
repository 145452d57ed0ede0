// SPDX-License-Identifier: Apache-2.0
// XLA FFI handlers: decode, assert aliasing, call grouped.h. One body serves all operations and platforms.
//
// Operands: the inputs in table order (bits of `inputs`), then the buffers that results alias (bits of
// `aliased`). Results:  the outputs in table order (bits of `outputs`), then the workspace.
#include "xla/handlers.h"

#include <string>

#include "doors/operation_call.h"
#include "xla/executor.h"
#include "xla/ffi/api/ffi.h"

namespace grouped::xla_door {
namespace {

namespace ffi = ::xla::ffi;
using doors::kMaxArguments;

int32_t dtype_of(ffi::DataType t) {
  switch (t) {
    case ffi::DataType::F16:
      return GROUPED_F16;
    case ffi::DataType::BF16:
      return GROUPED_BF16;
    case ffi::DataType::F32:
      return GROUPED_F32;
    case ffi::DataType::F64:
      return GROUPED_F64;
    case ffi::DataType::S32:
      return GROUPED_I32;
    case ffi::DataType::S64:
      return GROUPED_I64;
    default:
      return GROUPED_OTHER;
  }
}

grouped_tensor tensor_of(const ffi::AnyBuffer& buffer, int32_t device) {
  grouped_tensor t = {};
  t.data = buffer.untyped_data();
  t.dtype = dtype_of(buffer.element_type());
  t.device = device;
  const auto dims = buffer.dimensions();
  t.rank = static_cast<int32_t>(dims.size());
  int64_t stride = 1;
  for (int32_t i = t.rank - 1; i >= 0 && t.rank <= GROUPED_MAX_RANK; --i) {
    t.shape[i] = dims[i];
    t.strides[i] = stride;  // XLA hands over row-major buffers
    stride *= dims[i];
  }
  return t;
}

ffi::Error error_of(int32_t code, const char* message) {
  switch (code) {
    case GROUPED_OK:
      return ffi::Error::Success();
    case GROUPED_BAD_VALUE:
    case GROUPED_BAD_TYPE:
      return ffi::Error::InvalidArgument(message);
    case GROUPED_UNSUPPORTED:
      return ffi::Error(ffi::ErrorCode::kUnimplemented, message);
    default:
      return ffi::Error::Internal(message);
  }
}

struct Attributes {
  int64_t inputs, outputs, aliased;  // bit i: argument i of the operation's table
  doors::Options options;
};

// Fills `tensors`; on return *workspace is the index of the workspace among the results.
ffi::Error gather(int32_t op, const Attributes& a, int32_t device, ffi::RemainingArgs& args,
                  ffi::RemainingRets& rets, grouped_tensor* storage, const grouped_tensor** tensors,
                  size_t* workspace) {
  size_t operand = 0, result = 0;
  const auto bit = [](int64_t mask, int i) { return (mask >> i & 1) != 0; };
  for (int i = 0; i < kMaxArguments; ++i) {
    if (bit(a.inputs, i)) {
      auto buffer = args.get<ffi::AnyBuffer>(operand++);
      if (buffer.has_error()) return buffer.error();
      storage[i] = tensor_of(*buffer, device);
    } else if (bit(a.outputs, i)) {
      auto buffer = rets.get<ffi::AnyBuffer>(result++);
      if (buffer.has_error()) return buffer.error();
      storage[i] = tensor_of(**buffer, device);
    } else {
      continue;
    }
    tensors[i] = &storage[i];
  }
  for (int i = 0; i < kMaxArguments; ++i) {
    if (!bit(a.aliased, i)) continue;
    auto buffer = args.get<ffi::AnyBuffer>(operand++);
    if (buffer.has_error()) return buffer.error();
    // Without this the rows that the kernel leaves alone would be garbage, silently.
    if (buffer->untyped_data() != storage[i].data && buffer->element_count() > 0) {
      const char* name = nullptr;
      grouped_argument_dims(op, a.options.weight_layout, i, &name);
      return ffi::Error::InvalidArgument(
          std::string(name) +
          " must be aliased by its result; XLA gave them different memory. Set "
          "input_output_aliases on the call.");
    }
  }
  *workspace = result;
  return ffi::Error::Success();
}

template <int32_t kOp>
ffi::Error run(const Attributes& attributes, int32_t device, const grouped_executor* executor, void* stream,
               ffi::RemainingArgs& args, ffi::RemainingRets& rets) {
  grouped_tensor storage[kMaxArguments];
  const grouped_tensor* tensors[kMaxArguments] = {};
  size_t workspace_index = 0;
  ffi::Error e = gather(kOp, attributes, device, args, rets, storage, tensors, &workspace_index);
  if (e.failure()) return e;
  grouped_launch launch = {executor, nullptr, 0, stream};
  if (workspace_index < rets.size()) {
    auto workspace = rets.get<ffi::AnyBuffer>(workspace_index);
    if (workspace.has_error()) return workspace.error();
    launch.workspace = (*workspace)->untyped_data();
    launch.workspace_size = (*workspace)->size_bytes();
  }
  grouped_status status = {};
  status.struct_size = sizeof(status);
  return error_of(doors::call_operation(kOp, tensors, attributes.options, &launch, &status), status.message);
}

doors::Options options_of(int32_t weight_layout, int32_t sizes_kind, int32_t tail, int32_t accumulate,
                          int32_t kind, int32_t gate_layout, double alpha, double limit, double offset) {
  return {weight_layout, sizes_kind, tail, accumulate, {kind, gate_layout, alpha, limit, offset}};
}

template <int32_t kOp>
ffi::Error on_cpu(ffi::ThreadPool pool, int64_t inputs, int64_t outputs, int64_t aliased,
                  int32_t weight_layout, int32_t sizes_kind, int32_t tail, int32_t accumulate, int32_t kind,
                  int32_t gate_layout, double alpha, double limit, double offset, ffi::RemainingArgs args,
                  ffi::RemainingRets rets) {
  const PoolExecutor executor(pool);
  const Attributes attributes = {
      inputs, outputs, aliased,
      options_of(weight_layout, sizes_kind, tail, accumulate, kind, gate_layout, alpha, limit, offset)};
  return run<kOp>(attributes, GROUPED_DEVICE_CPU, executor.get(), nullptr, args, rets);
}

template <int32_t kOp>
ffi::Error on_cuda(void* stream, int32_t device, int64_t inputs, int64_t outputs, int64_t aliased,
                   int32_t weight_layout, int32_t sizes_kind, int32_t tail, int32_t accumulate, int32_t kind,
                   int32_t gate_layout, double alpha, double limit, double offset, ffi::RemainingArgs args,
                   ffi::RemainingRets rets) {
  const Attributes attributes = {
      inputs, outputs, aliased,
      options_of(weight_layout, sizes_kind, tail, accumulate, kind, gate_layout, alpha, limit, offset)};
  return run<kOp>(attributes, device, nullptr, stream, args, rets);
}

template <typename Binding>
auto with_attributes(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("inputs")
      .template Attr<int64_t>("outputs")
      .template Attr<int64_t>("aliased")
      .template Attr<int32_t>("weight_layout")
      .template Attr<int32_t>("sizes_kind")
      .template Attr<int32_t>("tail")
      .template Attr<int32_t>("accumulate")
      .template Attr<int32_t>("kind")
      .template Attr<int32_t>("gate_layout")
      .template Attr<double>("alpha")
      .template Attr<double>("limit")
      .template Attr<double>("offset")
      .RemainingArgs()
      .RemainingRets();
}

auto cpu_binding() { return with_attributes(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()); }
auto cuda_binding() {
  return with_attributes(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>().Ctx<ffi::DeviceOrdinal>());
}

template <int32_t kOp>
struct Handlers {
  XLA_FFI_DEFINE_HANDLER(kCpu, on_cpu<kOp>, cpu_binding());
  XLA_FFI_DEFINE_HANDLER(kCuda, on_cuda<kOp>, cuda_binding());
  XLA_FFI_DEFINE_HANDLER(kCudaCapturable, on_cuda<kOp>, cuda_binding(), {ffi::Traits::kCmdBufferCompatible});
};

template <int32_t kOp>
Registration registration(const char* target, bool is_cuda, bool capturable) {
  using H = Handlers<kOp>;
  XLA_FFI_Handler* handler = !is_cuda ? +H::kCpu : capturable ? +H::kCudaCapturable : +H::kCuda;
  return {target, reinterpret_cast<void*>(handler)};
}

}  // namespace

std::vector<Registration> registrations(bool is_cuda, bool capturable) {
  return {
      registration<GROUPED_OP_MM>("grouped_mm_v1", is_cuda, capturable),
      registration<GROUPED_OP_WGRAD>("grouped_wgrad_v1", is_cuda, capturable),
      registration<GROUPED_OP_BIAS_GRAD>("grouped_bias_grad_v1", is_cuda, capturable),
      registration<GROUPED_OP_ACTIVATION>("grouped_activation_v1", is_cuda, capturable),
      registration<GROUPED_OP_ACTIVATION_GRAD>("grouped_activation_grad_v1", is_cuda, capturable),
      registration<GROUPED_OP_ROW_SCALE>("grouped_row_scale_v1", is_cuda, capturable),
      registration<GROUPED_OP_ROW_DOT>("grouped_row_dot_v1", is_cuda, capturable),
  };
}

int32_t ffi_api_major() { return XLA_FFI_API_MAJOR; }
int32_t ffi_api_minor() { return XLA_FFI_API_MINOR; }

}  // namespace grouped::xla_door
