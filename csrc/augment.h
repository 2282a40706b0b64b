// What ops.cpp calls: the CPU loops (augment_cpu.cpp) and the CUDA launches (augment_cuda.cu). No torch on this side.
#pragma once

#include <cstdint>
#include <vector>

#include "augment/normalise.h"
#include "augment/plan.h"
#include "augment/sample.h"

namespace deit {

// One call: `count` images of `size` x `size` from placed rows.
struct Batch {
  const uint8_t* data;
  int64_t data_bytes;
  const PlanRow* rows;
  int64_t count;
  int32_t size;
};

namespace cpu {

// Throws std::invalid_argument for the first row that would read outside its image or the buffer.
void check_rows(const Batch& batch);

// The images [begin, end) of a checked batch; called by many threads at once, which only lack of memory can fail.
void resize(const Batch& batch, int64_t begin, int64_t end, uint8_t* images);
void apply(const Batch& batch, int64_t begin, int64_t end, const std::vector<uint32_t>& levels, const Finish& finish,
           void* output);

// The bits that each of the 256 levels of each channel becomes, [3][256]; 16-bit types in the low half.
std::vector<uint32_t> level_bits(const Finish& finish);

}  // namespace cpu

namespace cuda {

// Both on `stream`; `rows` are on the device and are not known here: a row with a problem gives zeros and NaN.
void resize(const Batch& batch, uint8_t* images, void* stream);
void finish(const Batch& batch, const uint8_t* images, const Finish& finish, void* output, void* stream);

}  // namespace cuda

}  // namespace deit
