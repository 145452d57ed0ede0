// SPDX-License-Identifier: Apache-2.0
// The C interface: check, choose the backend, launch.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

#include "core/backend.h"
#include "core/log.h"
#include "core/make_problem.h"
#include "core/on_demand.h"
#include "core/switches.h"
#include "core/words.h"

#ifndef GROUPED_VERSION
#error "the build defines GROUPED_VERSION"
#endif

namespace grouped {
namespace {

std::atomic<uint64_t> call_counts[GROUPED_OP_COUNT];

int32_t report(const Status& s, grouped_status* status) {
  if (status != nullptr) {
    status->code = s.code();
    const size_t n = std::min(s.message().size(), sizeof(status->message) - 1);
    std::memcpy(status->message, s.message().data(), n);
    status->message[n] = '\0';
  }
  return s.code();
}

// Nothing thrown may cross the C interface; a failed allocation of a message is all that could be.
template <typename Body>
int32_t guarded(grouped_status* status, Body body) {
  try {
    return report(body(), status);
  } catch (const std::exception& e) {
    return report(Status(GROUPED_INTERNAL, e.what()), status);
  }
}

Status find_backend(int32_t device, const Backend** backend) {
  *backend = device == GROUPED_DEVICE_CPU ? &cpu_backend() : cuda_backend();
  if (*backend != nullptr) return Status();
  return Status(GROUPED_UNSUPPORTED, "this build of grouped-ffi has no CUDA kernels; got tensors on " +
                                         device_words(device) + ". Build with GROUPED_CUDA=ON.");
}

Status short_workspace(int32_t op, size_t given, size_t needed) {
  return Status(GROUPED_INTERNAL, std::string(rule_of(op)->name) + ": workspace must hold " +
                                      std::to_string(needed) + " bytes; got " + std::to_string(given) +
                                      ". Ask grouped_workspace_size().");
}

template <typename Args>
void log_call(int32_t op, const Args& args, int32_t device) {
  const OperationRule& rule = *rule_of(op);
  std::string line = rule.name;
  for (int32_t i = 0; i < rule.count; ++i) {
    const grouped_tensor* t = *reinterpret_cast<const grouped_tensor* const*>(
        reinterpret_cast<const char*>(&args) + rule.arguments[i].offset);
    if (t != nullptr) line += std::string(" ") + rule.arguments[i].name + given_words(*t);
  }
  log_once(line + " -> " + (device == GROUPED_DEVICE_CPU ? "cpu" : "cuda"));
}

template <typename Problem>
bool uses_workspace(const Backend&, const Problem&, int) {
  return true;
}
bool uses_workspace(const Backend& backend, const MmProblem& problem, int device) {
  return backend.mm_uses_workspace == nullptr || backend.mm_uses_workspace(problem, device);
}

template <typename Problem, typename Args>
int32_t run(int32_t op, Status (*Backend::*function)(const Problem&, const Launch&), const Args* args,
            const grouped_launch* launch, grouped_status* status, const WorkspaceSource* source = nullptr) {
  return guarded(status, [&]() -> Status {
    if (args == nullptr || launch == nullptr)
      return Status(GROUPED_INTERNAL, "arguments and launch are needed");
    Problem problem;
    Checked found;
    Status s = make_problem(*args, &problem, &found);
    if (!s.ok()) return s;
    const Backend* backend = nullptr;
    s = find_backend(found.device, &backend);
    if (!s.ok()) return s;
    const size_t needed =
        backend->workspace_size(op, found.base, found.dims['K'], found.dims['N'], found.dims['G']);
    void* workspace = launch->workspace;
    if (source == nullptr) {
      const size_t given = launch->workspace == nullptr ? 0 : launch->workspace_size;
      if (given < needed) return short_workspace(op, given, needed);
    } else if (needed > 0 && uses_workspace(*backend, problem, found.device)) {
      workspace = source->allocate(source->context, needed);
      if (workspace == nullptr) return short_workspace(op, 0, needed);
    }
    if (log_switch()) log_call(op, *args, found.device);
    call_counts[op].fetch_add(1, std::memory_order_relaxed);
    return (backend->*function)(
        problem, Launch{launch->executor, launch->stream, workspace, found.device, check_switch()});
  });
}

}  // namespace

int32_t run_on_demand(int32_t op, const void* args, const grouped_launch& launch,
                      const WorkspaceSource& source, grouped_status* status) {
  const auto with = [&](auto function, const auto* typed) {
    return run(op, function, typed, &launch, status, &source);
  };
  switch (op) {
    case GROUPED_OP_MM:
      return with(&Backend::mm, static_cast<const grouped_mm_args*>(args));
    case GROUPED_OP_WGRAD:
      return with(&Backend::wgrad, static_cast<const grouped_wgrad_args*>(args));
    case GROUPED_OP_BIAS_GRAD:
      return with(&Backend::bias_grad, static_cast<const grouped_bias_grad_args*>(args));
    case GROUPED_OP_ACTIVATION:
      return with(&Backend::activation, static_cast<const grouped_activation_args*>(args));
    case GROUPED_OP_ACTIVATION_GRAD:
      return with(&Backend::activation_grad, static_cast<const grouped_activation_grad_args*>(args));
    case GROUPED_OP_ROW_SCALE:
      return with(&Backend::row_scale, static_cast<const grouped_row_scale_args*>(args));
    case GROUPED_OP_ROW_DOT:
      return with(&Backend::row_dot, static_cast<const grouped_row_dot_args*>(args));
    default:
      return grouped_check(op, args, status);
  }
}

}  // namespace grouped

extern "C" {

using grouped::Backend;

int32_t grouped_mm(const grouped_mm_args* args, const grouped_launch* launch, grouped_status* status) {
  return grouped::run(GROUPED_OP_MM, &Backend::mm, args, launch, status);
}
int32_t grouped_wgrad(const grouped_wgrad_args* args, const grouped_launch* launch, grouped_status* status) {
  return grouped::run(GROUPED_OP_WGRAD, &Backend::wgrad, args, launch, status);
}
int32_t grouped_bias_grad(const grouped_bias_grad_args* args, const grouped_launch* launch,
                          grouped_status* status) {
  return grouped::run(GROUPED_OP_BIAS_GRAD, &Backend::bias_grad, args, launch, status);
}
int32_t grouped_activation(const grouped_activation_args* args, const grouped_launch* launch,
                           grouped_status* status) {
  return grouped::run(GROUPED_OP_ACTIVATION, &Backend::activation, args, launch, status);
}
int32_t grouped_activation_grad(const grouped_activation_grad_args* args, const grouped_launch* launch,
                                grouped_status* status) {
  return grouped::run(GROUPED_OP_ACTIVATION_GRAD, &Backend::activation_grad, args, launch, status);
}
int32_t grouped_row_scale(const grouped_row_scale_args* args, const grouped_launch* launch,
                          grouped_status* status) {
  return grouped::run(GROUPED_OP_ROW_SCALE, &Backend::row_scale, args, launch, status);
}
int32_t grouped_row_dot(const grouped_row_dot_args* args, const grouped_launch* launch,
                        grouped_status* status) {
  return grouped::run(GROUPED_OP_ROW_DOT, &Backend::row_dot, args, launch, status);
}

int32_t grouped_check(int32_t op, const void* args, grouped_status* status) {
  return grouped::guarded(status, [&]() -> grouped::Status {
    using grouped::make_problem;
    if (args == nullptr) return grouped::Status(GROUPED_INTERNAL, "arguments are needed");
    grouped::Checked found;
    switch (op) {
      case GROUPED_OP_MM:
        return make_problem(*static_cast<const grouped_mm_args*>(args), nullptr, &found);
      case GROUPED_OP_WGRAD:
        return make_problem(*static_cast<const grouped_wgrad_args*>(args), nullptr, &found);
      case GROUPED_OP_BIAS_GRAD:
        return make_problem(*static_cast<const grouped_bias_grad_args*>(args), nullptr, &found);
      case GROUPED_OP_ACTIVATION:
        return make_problem(*static_cast<const grouped_activation_args*>(args), nullptr, &found);
      case GROUPED_OP_ACTIVATION_GRAD:
        return make_problem(*static_cast<const grouped_activation_grad_args*>(args), nullptr, &found);
      case GROUPED_OP_ROW_SCALE:
        return make_problem(*static_cast<const grouped_row_scale_args*>(args), nullptr, &found);
      case GROUPED_OP_ROW_DOT:
        return make_problem(*static_cast<const grouped_row_dot_args*>(args), nullptr, &found);
      case GROUPED_OP_LINEAR:
        return grouped::check_linear(*static_cast<const grouped_linear_args*>(args));
      default:
        return grouped::Status(GROUPED_INTERNAL, "no operation has number " + std::to_string(op));
    }
  });
}

const char* grouped_argument_dims(int32_t op, int32_t weight_layout, int32_t index, const char** name) {
  const grouped::OperationRule* rule = grouped::rule_of(op);
  if (rule == nullptr || index < 0 || index >= rule->count || weight_layout < 0 || weight_layout > 1)
    return nullptr;
  if (name != nullptr) *name = rule->arguments[index].name;
  return rule->arguments[index].dims[weight_layout];
}

size_t grouped_workspace_size(const grouped_workspace_query* query) {
  if (query == nullptr || query->struct_size < sizeof(grouped_workspace_query)) return 0;
  const Backend* backend =
      query->device == GROUPED_DEVICE_CPU ? &grouped::cpu_backend() : grouped::cuda_backend();
  if (backend == nullptr) return 0;
  return backend->workspace_size(query->op, static_cast<grouped::DType>(query->dtype), query->K, query->N,
                                 query->G);
}

int32_t grouped_abi_version(void) { return GROUPED_ABI_VERSION; }
const char* grouped_version(void) { return GROUPED_VERSION; }
int32_t grouped_has_cuda(void) { return grouped::cuda_backend() != nullptr ? 1 : 0; }
int32_t grouped_check_enabled(void) { return grouped::check_switch() ? 1 : 0; }
uint64_t grouped_call_count(int32_t op) {
  return op >= 0 && op < GROUPED_OP_COUNT ? grouped::call_counts[op].load(std::memory_order_relaxed) : 0;
}

}  // extern "C"
