// SPDX-License-Identifier: Apache-2.0
// The floating-point mode of a task: denormals kept, round to nearest. The calling thread's own mode comes
// back at the end, because one framework's threads flush denormals and the other's do not.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace grouped::cpu {

class FloatingPointScope {
 public:
  FloatingPointScope() : saved_(read()) { write(saved_ & ~kCleared); }
  ~FloatingPointScope() { write(saved_); }
  FloatingPointScope(const FloatingPointScope&) = delete;
  FloatingPointScope& operator=(const FloatingPointScope&) = delete;

 private:
#if defined(__x86_64__)
  using Register = uint32_t;
  // MXCSR: flush-to-zero (15), rounding control (14:13), denormals-are-zero (6).
  static constexpr Register kCleared = 0x8000u | 0x6000u | 0x0040u;
  static Register read() { return _mm_getcsr(); }
  static void write(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  // FPCR: flush-to-zero (24), rounding mode (23:22), flush-to-zero of half precision (19).
  static constexpr Register kCleared = (1ull << 24) | (3ull << 22) | (1ull << 19);
  static Register read() {
    Register value;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void write(Register value) { __asm__ __volatile__("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
  using Register = uint32_t;
  static constexpr Register kCleared = 0;
  static Register read() { return 0; }
  static void write(Register) {}
#endif

  const Register saved_;
};

}  // namespace grouped::cpu
