// What happens to one image: a row of a plan, the same bytes as `ROW` in deit_kernels/augment/plan.py.
//
// The source box is resized to `resized`, of which the size x size window at `window` is kept and, with `flip`,
// mirrored; `pad` pixels beyond the edges are reflected. Then come up to four ops, then the erased box, filled with the
// noise of (seed, epoch, sample, copy). Rows are never stored, so both sides change together.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace deit {

enum class Filter : int32_t { bilinear = 0, bicubic = 1 };

struct Box {
  int32_t top, left, height, width;
};

// The ops, the first 15 in the order of timm's RandAugment; the names and numbers of OPS in
// deit_kernels/augment/rand_augment.py.
enum class Op : int16_t {
  none, auto_contrast, equalize, invert, rotate, posterize, solarize, solarize_add, color, contrast, brightness,
  sharpness, shear_x, shear_y, translate_x, translate_y, gaussian_blur
};
constexpr int op_count = 17;

HOST_DEVICE bool is_affine(Op op) { return op == Op::rotate || (Op::shear_x <= op && op <= Op::translate_y); }

// What an op costs a CUDA card, roughly; a bilinear rotation costs less.
constexpr int32_t op_cost[op_count] = {0, 11, 12, 2, 36, 2, 3, 2, 6, 5, 4, 14, 16, 17, 15, 14, 30};

// One op with its argument: `OP` in plan.py. The last four fields are for the affine ops.
struct OpCall {
  Op op;
  uint8_t filter;   // Filter
  uint8_t fast;     // coordinates and interpolation in float32 instead of float64
  uint8_t fill[3];  // colour of what lies outside the image
  uint8_t unused;
  double arg;
  double matrix[6];  // output coordinates to source coordinates
};
static_assert(sizeof(OpCall) == 64, "the bytes of OP in plan.py");

enum class Erase : int32_t { none = 0, constant = 1, random = 2, pixel = 3 };
constexpr int layers = 4;

struct PlanRow {
  int64_t offset;  // first byte of the image in the data buffer; -1 until the plan is placed
  int32_t height, width;
  Box box;
  int32_t resized_height, resized_width;
  int32_t window_top, window_left;
  Filter filter;
  int32_t flip;
  OpCall ops[layers];
  Box erased;  // in pixels of the output
  Erase erase;
  uint32_t epoch, sample, copy;
  uint64_t seed;
  int32_t pad;
  // For a CUDA card, which begins the images with the heaviest ops first: the row that is made when this one's turn is,
  // and this one's turn. Rows that do not name each other, as in a part of a batch, are made when they stand.
  uint16_t order, turn;
};
static_assert(sizeof(PlanRow) == 360 && alignof(PlanRow) == 8, "the bytes of ROW in plan.py");

constexpr int32_t max_side = (1 << 24) - 1;  // Pillow keeps box coordinates in float32
constexpr int32_t max_output = 1024;         // one line of the output must fit the shared memory of a CUDA block

// The fourth counter word: which numbers of an image's stream a decision uses. Each stage owns a block of 16.
enum Draw : uint32_t {
  draw_crop = 0,     // try t uses draw_crop + t: area, ratio, top, left
  draw_flip = 16,    // flip, filter, whether to erase
  draw_ops = 32,     // layer l uses draw_ops + 2 l: op, whether, two for the magnitude; then: sign or share, filter
  draw_group = 40,   // which sub-policy, the order of the colour jitter
  draw_jitter = 41,  // brightness, contrast, saturation
  draw_erase = 48,   // try t uses draw_erase + t: area, ratio, top, left
};

enum class RowProblem { none, sides, buffer, empty_box, box, window, choice, op, erased };

HOST_DEVICE bool is_good(const OpCall& call) {
  return call.op >= Op::none && static_cast<int>(call.op) < op_count && call.filter <= 1 && call.fast <= 1;
}

// Whether [start, start + count) reaches at most `pad` pixels beyond [0, resized), where reflection finds them.
HOST_DEVICE bool window_fits(int32_t start, int32_t count, int32_t resized, int32_t pad) {
  const bool reflects = pad == 0 || (0 < pad && pad < resized && resized <= max_side);
  return reflects && start >= -pad && int64_t{start} + count <= int64_t{resized} + pad;
}

// Mirrored at the first and last pixel, which are not repeated: torchvision's padding_mode="reflect".
HOST_DEVICE int32_t reflect(int32_t at, int32_t resized) {
  return at < 0 ? -at : at >= resized ? 2 * (resized - 1) - at : at;
}

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
  if (!window_fits(row.window_top, size, row.resized_height, row.pad) ||
      !window_fits(row.window_left, size, row.resized_width, row.pad))
    return RowProblem::window;
  if ((row.filter != Filter::bilinear && row.filter != Filter::bicubic) || (row.flip & ~1)) return RowProblem::choice;
  for (const OpCall& call : row.ops)
    if (!is_good(call)) return RowProblem::op;
  const Box& erased = row.erased;
  if (row.erase < Erase::none || row.erase > Erase::pixel || erased.top < 0 || erased.left < 0 || erased.height < 0 ||
      erased.width < 0 || int64_t{erased.top} + erased.height > size || int64_t{erased.left} + erased.width > size)
    return RowProblem::erased;
  return RowProblem::none;
}

}  // namespace deit
