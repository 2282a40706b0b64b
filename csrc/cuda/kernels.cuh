// The CUDA kernel bodies, over the same arithmetic as the CPU: no torch, no launch syntax, so that the tests can build
// them with g++ and run them on the CPU (csrc/emulate). augment.cu launches them.
//
//   resize.cuh   crop, resize and flip of every image, a block for each band of lines
//   ops.cuh      the ops of every image, a cluster of blocks for each; affine.cuh: the affine ones, blur.cuh: the blur
//   finish.cuh   normalise, erase, mix and round, a block for each part of an image; mixed.cuh: its values, places.cuh:
//                where they go
//   block.cuh    what they share
//
// Allowed here: dynamic shared memory, __syncthreads, integer atomics, and Team::sync for blocks (x, 0) to (x, y). The
// block size is a parameter; every loop strides by it.
#pragma once

#include "finish.cuh"
#include "ops.cuh"
#include "resize.cuh"

namespace deit::cuda {

constexpr int finish_threads = 128;  // of the last stage
constexpr int ops_parts = 8;  // blocks of an image that run its ops together, on cards that have clusters
constexpr int lone_threads = 2 * threads;  // of the one block that runs them on cards that have none

}  // namespace deit::cuda
