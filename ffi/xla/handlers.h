// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace grouped::xla_door {

struct Registration {
  const char* target;  // what HLO calls it
  void* handler;       // XLA_FFI_Handler*
};

// `is_cuda` picks the platform; `capturable` the handlers that XLA may put into a command buffer.
std::vector<Registration> registrations(bool is_cuda, bool capturable);

// The XLA FFI version these handlers were compiled against; a runtime must not be older.
int32_t ffi_api_major();
int32_t ffi_api_minor();

}  // namespace grouped::xla_door
