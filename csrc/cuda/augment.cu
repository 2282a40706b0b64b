// Launches the kernels of kernels.cuh on the caller's stream: no synchronisation, no allocation, capturable.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../augment.h"
#include "kernels.cuh"

namespace deit::cuda {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000  // where nvcc needs more registers
#define FINISH_BOUNDS __launch_bounds__(finish_threads, 5)
#else
#define FINISH_BOUNDS __launch_bounds__(finish_threads, 8)
#endif

// 128 registers a thread, with which nothing spills: two blocks a multiprocessor.
__global__ void __launch_bounds__(threads, 2)
    resize_kernel(const uint8_t* data, int64_t data_bytes, const PlanRow* rows, ResizeShape shape, uint8_t* images) {
  extern __shared__ __align__(16) unsigned char shared[];
  resize_block(data, data_bytes, rows, shape, images, shared);
}

__global__ void __launch_bounds__(lone_threads, 1)
    plan_ops_kernel(int64_t data_bytes, const PlanRow* rows, int32_t size, uint8_t* images, uint32_t* scratch) {
  extern __shared__ __align__(16) unsigned char shared[];
  plan_ops_block(data_bytes, rows, size, images, scratch, shared);
}

__global__ void __launch_bounds__(lone_threads, 1)
    ops_kernel(const OpCall* calls, int32_t height, int32_t width, uint8_t* images, uint32_t* scratch) {
  extern __shared__ __align__(16) unsigned char shared[];
  ops_block(calls, height, width, images, scratch, shared);
}

template <Type type>
__global__ void FINISH_BOUNDS
    finish_kernel(FinishBatch batch, Finish finish, typename Element<type>::Bits* output) {
  extern __shared__ __align__(16) unsigned char shared[];
  finish_block<type>(batch, finish, output, shared);
}

template <Type type>
void launch_finish(const FinishBatch& batch, const Finish& finish, void* output, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(batch.count), divided_up(batch.size, lines_of_part));
  finish_kernel<type><<<grid, finish_threads, sizeof(FinishShared), stream>>>(
      batch, finish, static_cast<typename Element<type>::Bits*>(output));
}

void check(cudaError_t error, const char* kernel) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets the error, which the caller's next launch would be blamed for
  throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

// A cluster of ops_parts blocks for each image, from sm_90 on; else one block of twice the threads.
template <typename... Parameters>
void launch_ops(const char* name, void (*kernel)(Parameters...), int64_t count, void* stream, Parameters... arguments) {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), name);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), name);
  const unsigned parts = major >= 9 ? ops_parts : 1;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = cluster.val.clusterDim.z = 1;
  cluster.val.clusterDim.y = parts;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(count), parts);
  config.blockDim = dim3(parts > 1 ? threads : lone_threads);
  config.dynamicSmemBytes = sizeof(OpsShared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = parts > 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

}  // namespace

void resize(const Batch& batch, uint8_t* images, void* stream) {
  if (batch.count == 0) return;
  const ResizeShape shape(batch.size);
  // The most that any size takes: another thread may launch another size at the same time.
  constexpr int32_t most = largest_resize_bytes();
  check(cudaFuncSetAttribute(resize_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "resize_kernel");
  const dim3 grid(static_cast<unsigned>(batch.count), shape.parts());
  resize_kernel<<<grid, threads, shape.bytes, static_cast<cudaStream_t>(stream)>>>(batch.data, batch.data_bytes,
                                                                                  batch.rows, shape, images);
  check(cudaGetLastError(), "resize_kernel");
}

void run_plan_ops(const Batch& batch, uint8_t* images, uint32_t* scratch, void* stream) {
  if (batch.count == 0) return;
  launch_ops("plan_ops_kernel", plan_ops_kernel, batch.count, stream, batch.data_bytes, batch.rows, batch.size, images,
             scratch);
}

void run_ops(const OpBatch& batch, uint32_t* scratch, void* stream) {
  if (batch.count == 0) return;
  launch_ops("ops_kernel", ops_kernel, batch.count, stream, batch.calls, batch.height, batch.width, batch.images,
             scratch);
}

void finish(const Batch& batch, const uint8_t* images, const Finish& finish, void* output, void* stream) {
  if (batch.count == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  const FinishBatch staged{images, batch.data_bytes, batch.rows, batch.mix, batch.count, batch.size,
                           Inverses(finish)};
  switch (finish.type) {
    case Type::float32: launch_finish<Type::float32>(staged, finish, output, on); break;
    case Type::float16: launch_finish<Type::float16>(staged, finish, output, on); break;
    case Type::bfloat16: launch_finish<Type::bfloat16>(staged, finish, output, on); break;
  }
  check(cudaGetLastError(), "finish_kernel");
}

}  // namespace deit::cuda
