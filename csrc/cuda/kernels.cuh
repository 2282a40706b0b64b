// The CUDA kernel bodies, over the same arithmetic as the CPU: no torch, no launch syntax, so that the tests can build
// them with g++ and run them on the CPU (csrc/emulate). augment.cu launches them.
//
//   resize.cuh   crop, resize and flip of every image, a block for each band of its lines
//   ops.cuh      the ops of every image, a cluster of blocks for each; ops/ has the affine ones, those on levels, the blur
//   finish.cuh   normalise, erase, mix and round, a block for each part of an image; finish/mixed.cuh: its values,
//                finish/places.cuh: where they go
//   block.cuh, bytes.cuh   how threads share work; four bytes at once
//
// Allowed here: dynamic shared memory, __syncthreads, integer atomics, and Team::sync for blocks (x, 0) to (x, y). The
// block size is a parameter, by which every loop strides.
#pragma once

#include "finish.cuh"
#include "ops.cuh"
#include "resize.cuh"

namespace deit::cuda {

constexpr int finish_threads = 128;  // of the last stage
constexpr int ops_parts = 8;  // blocks of an image that run its ops together, on cards that have clusters
constexpr int lone_threads = 2 * threads;  // of the one block that runs them on cards that have none

}  // namespace deit::cuda
