// SPDX-License-Identifier: Apache-2.0
#include "sm90/wgrad.cuh"

namespace grouped::cuda::sm90 {

Status wgrad_bf16(const WgradProblem& p, const Config& config, const Launch& launch) {
  return wgrad<__nv_bfloat16>(p, config, launch);
}

}  // namespace grouped::cuda::sm90

extern "C" __attribute__((visibility("default"))) int grouped_active_clusters(int size) {
  using namespace grouped::cuda::sm90;
  using Work = WgradWork<__nv_bfloat16, TakeTurns, false, false>;
  auto* kernel = wgrad_kernel<Work>;
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, Shared<TakeTurns>::kBytes);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = size; cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(132 / size * size); config.blockDim = dim3(kThreads); config.dynamicSmemBytes = Shared<TakeTurns>::kBytes;
  config.attrs = &cluster; config.numAttrs = 1;
  int n = -1; cudaError_t e = cudaOccupancyMaxActiveClusters(&n, kernel, &config);
  return e == cudaSuccess ? n : -static_cast<int>(e);
}
