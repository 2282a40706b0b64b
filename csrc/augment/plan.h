// What happens to one image: a row of a plan, the same bytes as `ROW` in deit_kernels/augment/plan.py.
//
// The source box is resized to `resized`, of which the size x size window at `window` is kept and, with `flip`,
// mirrored. Stages yet to come append their fields; rows are never stored, so both sides change together.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace deit {

enum class Filter : int32_t { bilinear = 0, bicubic = 1 };

struct Box {
  int32_t top, left, height, width;
};

struct PlanRow {
  int64_t offset;  // first byte of the image in the data buffer; -1 until the plan is placed
  int32_t height, width;
  Box box;
  int32_t resized_height, resized_width;
  int32_t window_top, window_left;
  Filter filter;
  int32_t flip;
};
static_assert(sizeof(PlanRow) == 56 && alignof(PlanRow) == 8, "the bytes of ROW in plan.py");

constexpr int32_t max_side = (1 << 24) - 1;  // Pillow keeps box coordinates in float32
constexpr int32_t max_output = 1024;         // one line of the output must fit the shared memory of a CUDA block

// The fourth counter word: which numbers of an image's stream a decision uses. Each stage owns a block of 16.
enum Draw : uint32_t {
  draw_crop = 0,   // try t uses draw_crop + t: area, ratio, top, left
  draw_flip = 16,  // first word: flip
};

enum class RowProblem { none, sides, buffer, empty_box, box, window, choice };

// Whether a row would read outside its image or the buffer. Every implementation asks before it reads a pixel: the CPU
// raises an error, a CUDA kernel, whose rows the host cannot see, gives NaN.
HOST_DEVICE RowProblem row_problem(const PlanRow& row, int64_t data_bytes, int32_t size) {
  if (row.height < 1 || row.width < 1 || row.height > max_side || row.width > max_side) return RowProblem::sides;
  if (row.offset < 0 || row.offset > data_bytes - 3 * (int64_t{row.height} * row.width)) return RowProblem::buffer;
  const Box& box = row.box;
  if (box.height < 1 || box.width < 1) return RowProblem::empty_box;
  if (box.top < 0 || box.left < 0 || int64_t{box.top} + box.height > row.height ||
      int64_t{box.left} + box.width > row.width)
    return RowProblem::box;
  if (row.window_top < 0 || row.window_left < 0 || int64_t{row.window_top} + size > row.resized_height ||
      int64_t{row.window_left} + size > row.resized_width)
    return RowProblem::window;
  if ((row.filter != Filter::bilinear && row.filter != Filter::bicubic) || (row.flip & ~1)) return RowProblem::choice;
  return RowProblem::none;
}

}  // namespace deit
