// The CUDA kernel bodies, over the same arithmetic as the CPU: no torch, no launch syntax, so that the tests can build
// them with g++ and run them on the CPU (csrc/emulate). augment.cu launches them.
//
// Allowed here: dynamic shared memory, __syncthreads, full-mask warp intrinsics, integer atomics. The block size is a
// parameter; every loop strides by it.
#pragma once

#include <cstdint>

#include "../arithmetic/plan.h"
#include "finish.cuh"
#include "ops.cuh"
#include "resize.cuh"

namespace deit::cuda {

// Grid: (images). The ops of a plan's rows, in place; an invalid row leaves its image as it is.
DEVICE void plan_ops_block(int64_t data_bytes, const PlanRow* rows, int32_t size, uint8_t* images, uint8_t* scratch,
                           unsigned char* shared) {
  const PlanRow& row = rows[blockIdx.x];
  if (row_problem(row, data_bytes, size) != RowProblem::none) return;
  const int64_t first = 3 * int64_t{blockIdx.x} * size * size;
  for (const OpCall& call : row.ops)
    run_call(images + first, scratch + first, size, size, call, *reinterpret_cast<OpsShared*>(shared));
}

// Grid: (images). One op for each image, in place; an unknown op does nothing.
DEVICE void ops_block(const OpCall* calls, int32_t height, int32_t width, uint8_t* images, uint8_t* scratch,
                      unsigned char* shared) {
  const OpCall& call = calls[blockIdx.x];
  if (!is_good(call)) return;
  const int64_t first = 3 * int64_t{blockIdx.x} * height * width;
  run_call(images + first, scratch + first, height, width, call, *reinterpret_cast<OpsShared*>(shared));
}

}  // namespace deit::cuda
