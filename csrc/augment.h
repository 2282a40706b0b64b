// What ops.cpp calls: the CPU loops (cpu/) and the CUDA launches (cuda/). No torch on this side.
#pragma once

#include <cstdint>
#include <vector>

#include "arithmetic/mix.h"
#include "arithmetic/normalise.h"
#include "arithmetic/plan.h"
#include "arithmetic/sample.h"

namespace deit {

// One call: `count` images of `size` x `size` from placed rows; `mix` is null or has as many rows.
struct Batch {
  const uint8_t* data;
  int64_t data_bytes;
  const PlanRow* rows;
  const MixRow* mix;
  int64_t count;
  int32_t size;
};

// `count` images of any one size and an op for each, changed in place.
struct OpBatch {
  uint8_t* images;
  const OpCall* calls;
  int64_t count;
  int32_t height, width;
};

namespace cpu {

// Throw std::invalid_argument for the first row that would read outside its image or the buffer, whose partner is
// outside the batch, or whose op is unknown.
void check_rows(const Batch& batch);
void check_mix(const MixRow* mix, int64_t count, int32_t size);
void check_calls(const OpBatch& batch);

// Parts [begin, end) of a checked batch. Many threads call these at once; they throw only when memory runs out.
void resize(const Batch& batch, int64_t begin, int64_t end, uint8_t* images);
void run_ops(const OpBatch& batch, int64_t begin, int64_t end);

void apply(const Batch& batch, int64_t begin, int64_t end, const Finish& finish, void* output);

// The independent parts of a mixed batch: its rows, without the second of two rows that are mixed with each other, which
// the part of the first computes too.
std::vector<int64_t> mixed_parts(const Batch& batch);
void apply_mixed(const Batch& batch, const int64_t* parts, int64_t begin, int64_t end, const Finish& finish,
                 void* output);

}  // namespace cpu

namespace cuda {

// Words of an image in scratch memory: four for four pixels of a line, with edges of two lines and four pixels, or a word
// for each level. Four words lie at a multiple of 16 bytes.
HOST_DEVICE constexpr int64_t scratch_pixels(int64_t height, int64_t width) {
  constexpr int64_t levels = 3 * 256;
  const int64_t pixels = (height + 4) * 4 * ((width + 3) / 4 + 2);
  return pixels > levels ? pixels : levels;
}

// All on `stream`. The rows are on the device, so the host cannot check them: an invalid row gives zeros and NaN.
// `scratch` has scratch_pixels of each image.
void resize(const Batch& batch, uint8_t* images, void* stream);
void run_plan_ops(const Batch& batch, uint8_t* images, uint32_t* scratch, void* stream);
void run_ops(const OpBatch& batch, uint32_t* scratch, void* stream);
void finish(const Batch& batch, const uint8_t* images, const Finish& finish, void* output, void* stream);

}  // namespace cuda

}  // namespace deit
