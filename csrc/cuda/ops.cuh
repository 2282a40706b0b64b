// One op by an image's CUDA blocks, over the same arithmetic as the CPU.
#pragma once

#include <cstdint>

#include "../arithmetic/colour.h"
#include "../arithmetic/plan.h"
#include "../augment.h"
#include "block.cuh"
#include "ops/affine.cuh"
#include "ops/blur.cuh"
#include "ops/colour.cuh"
#include "ops/groups.cuh"
#include "ops/levels.cuh"

namespace deit::cuda {

// What the threads of a block share about their image.
struct OpsShared {
  LevelsShared levels;
  FixedAffine affine;
  PlanRow row;
  OpCall call;
  bool good;
};

// A level sharpened, from the taps of three lines that begin a pixel before it.
DEVICE int32_t sharpened(uint32_t above, uint32_t line, uint32_t below, float factor) {
  const uint32_t sum = dot4(0x010101, above, dot4(0x010501, line, dot4(0x010101, below, 0)));
  return blended(smoothed(static_cast<int32_t>(sum), 0), byte_of(line, 1), factor);  // the centre is in the sum
}

DEVICE void sharpen_pixels(const Groups& source, float factor, uint8_t* image) {
  const int32_t height = source.height, width = source.width, columns = source.columns();
  if (width % 4 != 0) {
    for (Cells cell(width, Team::of_image()); cell.row < height; cell.next()) {
      if (cell.row == 0 || cell.row == height - 1 || cell.column == 0 || cell.column == width - 1) continue;
      Planes line[3];
      for (int i = 0; i < 3; ++i) line[i] = source.taps(cell.row + i - 1, cell.column - 1);
      for (int c = 0; c < 3; ++c)
        image[3 * (int64_t{cell.row} * width + cell.column) + c] = static_cast<uint8_t>(
            packed(sharpened(line[0].channel[c], line[1].channel[c], line[2].channel[c], factor), 0, 0));
    }
    return;
  }
  for (Cells cell(columns, Team::of_image()); cell.row < height; cell.next()) {
    if (cell.row == 0 || cell.row == height - 1) continue;
    Words4 line[3][3];
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) line[i][j] = *source.at(cell.row + i - 1, cell.column + j - 1);
    const uint32_t edge = (cell.column == 0 ? 0x000000FF : 0) | (cell.column == columns - 1 ? 0xFF000000 : 0);
    Planes result;
    for (int c = 0; c < 3; ++c) {
      uint32_t taps[4][3];
      for (int i = 0; i < 3; ++i) {
        const uint32_t before = line[i][0].word[c], here = line[i][1].word[c], after = line[i][2].word[c];
        taps[0][i] = permuted(before, here, 0x6543);
        taps[1][i] = here;
        taps[2][i] = permuted(here, after, 0x4321);
        taps[3][i] = permuted(here, after, 0x5432);
      }
      int32_t level[4];
      for (int k = 0; k < 4; ++k) level[k] = sharpened(taps[k][0], taps[k][1], taps[k][2], factor);
      result.channel[c] = (four_levels(level[0], level[1], level[2], level[3]) & ~edge) | (line[1][1].word[c] & edge);
    }
    store_planes(result, reinterpret_cast<uint32_t*>(image) + 3 * (int64_t{cell.row} * columns + cell.column));
  }
}

// One op in place, by the image's blocks. What one thread stores here another reads only behind a barrier.
DEVICE void run_call(uint8_t* image, uint32_t* scratch, int32_t height, int32_t width, const OpCall& call,
                     OpsShared& shared) {
  const int64_t pixels = int64_t{height} * width;
  const auto factor = static_cast<float>(call.arg);
  if (call.op == Op::none) return;
  if (call.op == Op::color) {
    change_colour(image, pixels, factor);
  } else if (call.op == Op::gaussian_blur) {
    blur_pixels(image, scratch, height, width, call.arg);
  } else if (call.op == Op::sharpness || is_affine(call.op)) {
    const Groups source{scratch, height, width};
    source.fill(image);
    Team::sync();
    if (call.op == Op::sharpness)
      sharpen_pixels(source, factor, image);
    else
      affine_pixels(source, call, shared.affine, image);
  } else if (call.op == Op::auto_contrast || call.op == Op::equalize) {
    change_by_histogram(image, pixels, call.op, scratch, shared.levels);
  } else {
    const int32_t mean = call.op == Op::contrast ? mean_gray(image, pixels, scratch) : 0;
    change_by_level(image, pixels, call, mean);
  }
  Team::sync();
}

// The ops of a plan's row, in place; an invalid row leaves its image as it is.
DEVICE void plan_ops_row(int64_t data_bytes, const PlanRow* rows, int32_t index, int32_t size, uint8_t* images,
                         uint32_t* scratch, OpsShared& shared) {
  copy_row(rows + index, shared.row);
  __syncthreads();
  if (own_number() == 0) shared.good = row_problem(shared.row, data_bytes, size) == RowProblem::none;
  __syncthreads();
  if (!shared.good) return;
  scratch += index * scratch_pixels(size, size);
#pragma unroll 1
  for (const OpCall& call : shared.row.ops) {
    if (call.op == Op::none) continue;
    const int32_t side = hidden(size);  // most of what follows from it only one op needs
    run_call(images + 3 * int64_t{index} * side * side, scratch, side, side, call, shared);
  }
}

DEVICE bool has_ops(const PlanRow& row) {
  bool found = false;
  for (const OpCall& call : row.ops) found |= call.op != Op::none;
  return found;
}

// Grid: (images, parts). The ops of a plan's rows: of the row whose turn it is, and of this one if it has no turn. Rows
// that name each other have one; so every row is made once, whatever the rows hold.
DEVICE void plan_ops_block(int64_t data_bytes, const PlanRow* rows, int32_t size, uint8_t* images, uint32_t* scratch,
                           unsigned char* memory) {
  auto& shared = *reinterpret_cast<OpsShared*>(memory);
  const int32_t here = blockIdx.x, last = gridDim.x - 1;
  const int32_t first = smaller(rows[here].order, last), turn = smaller(rows[here].turn, last);
  // Loaded at once, before it is asked whose turn it is.
  const bool some = has_ops(rows[first]), has_first = smaller(rows[first].turn, last) == here;
  const bool has_turn = smaller(rows[turn].order, last) == here;
#pragma unroll 1
  for (int i = some && has_first ? 0 : 1; i < (has_turn ? 1 : 2); ++i) {
    const int32_t index = i == 0 ? first : here;
    if (i == 1) {
      if (!has_ops(rows[index])) return;
      __syncthreads();  // all threads have left the first row
    }
    plan_ops_row(data_bytes, rows, index, size, images, scratch, shared);
  }
}

// Grid: (images, parts). One op for each image, in place; an unknown op does nothing.
DEVICE void ops_block(const OpCall* calls, int32_t height, int32_t width, uint8_t* images, uint32_t* scratch,
                      unsigned char* memory) {
  auto& shared = *reinterpret_cast<OpsShared*>(memory);
  copy_row(calls + blockIdx.x, shared.call);
  __syncthreads();
  if (!is_good(shared.call)) return;
  scratch += blockIdx.x * scratch_pixels(height, width);
  run_call(images + 3 * int64_t{blockIdx.x} * height * width, scratch, height, width, shared.call, shared);
}

}  // namespace deit::cuda
