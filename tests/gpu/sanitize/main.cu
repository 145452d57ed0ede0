// SPDX-License-Identifier: Apache-2.0
// The CUDA backend through its C interface (halves.cu looks inside), without a framework, so that
// compute-sanitizer sees every byte: plain cudaMalloc, guards around every buffer, NaN in every output and
// tail, an fp64 reference on the host.
//
//   grouped_sanitize [--quick]      --quick: a minute even under racecheck
#include <cstring>

#include "harness.h"

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  if (grouped_has_cuda() == 0) {
    std::printf("built without CUDA\n");
    return 1;
  }
  sanitize::Report report;
  sanitize::halves_suite(report, quick);
  sanitize::mm_suite(report, quick);
  sanitize::wgrad_suite(report, quick);
  sanitize::bias_grad_suite(report, quick);
  sanitize::activation_suite(report, quick);
  sanitize::row_suite(report, quick);
  return report.finish();
}
