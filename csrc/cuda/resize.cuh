// Crop, resize and flip of every image by CUDA blocks, in one of two ways.
#pragma once

#include "resize/band.cuh"
#include "resize/tile.cuh"

namespace deit::cuda {

// How the blocks share an image, and their shared memory. The host works it out.
struct ResizeShape {
  BandShape band;
  int32_t across, down;  // parts of an image, side by side and one below the other
  int32_t bytes;

  HOST_DEVICE explicit constexpr ResizeShape(int32_t size)
      : band(size), across(divided_up(size, TileColumns::outputs)), down(divided_up(size, lines_of_band)),
        bytes(larger(band.bytes, sizeof(TileShared))) {}

  HOST_DEVICE constexpr int32_t parts() const { return across * down; }
};
constexpr int32_t largest_resize_bytes() {
  int32_t most = 0;
  for (int32_t size = 1; size <= max_output; ++size) most = larger(most, ResizeShape(size).bytes);
  return most;
}
static_assert(TileLines::outputs == lines_of_band);
static_assert(sizeof(TileShared) <= 75 * 1024);  // three blocks fit an H100's multiprocessor

// Grid: (images, shape.parts()). images: uint8 [count][size][size][3]; an invalid row gives zeros.
DEVICE void resize_block(const uint8_t* data, int64_t data_bytes, const PlanRow* rows, const ResizeShape& shape,
                         uint8_t* images, unsigned char* memory) {
  auto& source = *reinterpret_cast<ResizeSource*>(memory);
  auto& tile = *reinterpret_cast<TileShared*>(memory);
  const int32_t size = shape.band.size, part = quotient(blockIdx.y, shape.across);
  const int32_t first_line = part * lines_of_band, lines = smaller(lines_of_band, size - first_line);
  const int32_t left = (static_cast<int32_t>(blockIdx.y) - part * shape.across) * TileColumns::outputs;
  uint8_t* output = images + (int64_t{blockIdx.x} * size + first_line) * 3 * size;
  copy_row(rows + blockIdx.x, source.row);
  __syncthreads();
  // By threads of several warps, at the same time.
  const int32_t thread = own_number(), last = blockDim.x - 1;
  if (thread == 0) source.good = row_problem(source.row, data_bytes, size) == RowProblem::none;
  if (thread == smaller(warp_lanes, last)) {
    source.find(data, data_bytes);
    source.tiled = blockDim.x == threads && TileShared::fits(source);
  }
  if (thread == smaller(2 * warp_lanes, last)) {
    const PlanRow& row = source.row;
    tile.columns.count = smaller(TileColumns::outputs, size - left);
    tile.columns.window = row.window_left + (row.flip ? size - left - tile.columns.count : left);
    tile.output = output + 3 * left;
    tile.output_stride = 3 * size;
    tile.lines.count = lines;
    tile.lines.window = row.window_top + first_line;
  }
  __syncthreads();
  if (source.good && source.tiled)
    ResizeTile(tile).run();
  else if (left > 0)
    return;  // the first of the blocks side by side makes whole lines
  else if (source.good)
    resize_band(shape.band, first_line, lines, output, memory);
  else
    for (int32_t i = threadIdx.x; i < 3 * size * lines; i += blockDim.x) output[i] = 0;
}

}  // namespace deit::cuda
