// SPDX-License-Identifier: Apache-2.0
// One call of the C interface on guarded device memory: run twice, compare bits, look at every guard.
#pragma once

#include <deque>
#include <functional>

#include "array.h"

namespace sanitize {

// Counts, and says what failed.
class Report {
 public:
  void begin_suite(const char* name);
  void end_suite();
  void begin_case(std::string name) { case_ = std::move(name); }
  void end_case();
  void fail(const std::string& what);
  // Adds a result to the digest of all of them: inputs are the same in every run, so runs that may not differ
  // in a bit print the same one.
  void digest(const Array& result);
  int finish();

 private:
  std::string suite_, case_;
  int failures_in_case_ = 0;
  int suite_passed_ = 0, suite_failed_ = 0;
  int passed_ = 0, failed_ = 0;
  uint64_t digest_ = 0xcbf29ce484222325;  // FNV-1a
};

// Group sizes as the caller gives them, and what they mean.
struct Groups {
  std::string name;
  std::vector<int64_t> values;
  int64_t T = 0;
  bool is_64bit = false;
  bool are_ends = false;

  int64_t G() const { return static_cast<int64_t>(values.size()); }
  Array array() const;
  // [G + 1] Negative counts as 0, running ends never pass T.
  std::vector<int64_t> offsets() const;
};

// Every edge of group sizes; `quick` keeps a few that reach every branch.
std::vector<Groups> group_cases(bool quick);

class Call {
 public:
  explicit Call(Report& report) : report_(report) {}
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Copies an array to the device; the pointers live as long as this.
  const grouped_tensor* input(const char* name, const Array& array) { return add(name, array, false); }
  const grouped_tensor* output(const char* name, const Array& initial) { return add(name, initial, true); }

  // Runs `launch` twice from the outputs' initial contents. False if it returned an error.
  bool run(int op, int dtype, int64_t K, int64_t N, int64_t G,
           const std::function<int32_t(const grouped_launch*, grouped_status*)>& launch);
  // What output `index` holds after run().
  const Array& result(int index) const { return results_[index]; }

 private:
  struct Buffer {
    Array initial;
    grouped_tensor tensor;
    void* base;  // guard, contents, guard
    bool is_output;
  };
  const grouped_tensor* add(const char* name, const Array& array, bool is_output);
  void check_guards(const Buffer& buffer);
  Array download(const Buffer& buffer);

  Report& report_;
  std::deque<Buffer> buffers_;
  std::vector<Array> results_;
};

// Elements [begin, end): |result - reference[i]| <= half an ulp + slack[i].
void expect_close(Report& report, const char* what, const Array& result, int64_t begin, int64_t end,
                  const std::vector<double>& reference, const std::vector<double>& slack);

void expect_same_bytes(Report& report, const char* what, const Array& a, const Array& b, int64_t begin,
                       int64_t end);

// Elements from `begin` on are zeros (zeroed) or what `initial` held.
void expect_tail(Report& report, const Array& result, const Array& initial, int64_t begin, bool zeroed);

void check_cuda(int error, const char* what);
#define SANITIZE_CUDA(call) ::sanitize::check_cuda(static_cast<int>(call), #call)

// The suites.
void halves_suite(Report& report, bool quick);
void mm_suite(Report& report, bool quick);
void wgrad_suite(Report& report, bool quick);
void bias_grad_suite(Report& report, bool quick);
void activation_suite(Report& report, bool quick);
void row_suite(Report& report, bool quick);

}  // namespace sanitize
