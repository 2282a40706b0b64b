// The CPU implementation: checks, then the stages of stages.h image by image, in memory that a thread keeps.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../augment.h"
#include "stages.h"

namespace deit::cpu {
namespace {

// Rows are bytes of a tensor and may lie at any address.
template <typename Row>
Row read(const Row* rows, int64_t index) {
  Row row;
  std::memcpy(&row, reinterpret_cast<const uint8_t*>(rows) + index * sizeof row, sizeof row);
  return row;
}

const char* describe(RowProblem problem) {
  switch (problem) {
    case RowProblem::sides: return "an image's sides lie in [1, 2**24 - 1]";
    case RowProblem::buffer: return "the image leaves the data buffer";
    case RowProblem::empty_box: return "the box is empty";
    case RowProblem::box: return "the box leaves the image";
    case RowProblem::window: return "the window leaves the resized image";
    case RowProblem::op: return "an op, its filter or its mode is unknown";
    case RowProblem::erased: return "the erased box leaves the output, or its mode is unknown";
    default: return "the filter or flip is unknown";
  }
}

const char* describe(MixProblem problem) {
  switch (problem) {
    case MixProblem::partner: return "the partner is outside the batch";
    case MixProblem::mode: return "the mode is unknown";
    case MixProblem::lam: return "lam is outside [0, 1]";
    default: return "the box leaves the output";
  }
}

int64_t image_bytes(const Batch& batch) { return channels * batch.size * batch.size; }

void* place_in(void* output, const Batch& batch, int64_t index, const Finish& finish) {
  return static_cast<uint8_t*>(output) + index * image_bytes(batch) * bytes_of(finish.type);
}

// A batch that will have left the near caches before anyone reads it.
bool is_large(const Batch& batch, const Finish& finish) {
  constexpr int64_t near_caches = 4 << 20;
  return batch.count * image_bytes(batch) * bytes_of(finish.type) > near_caches;
}

// The row itself where nothing is mixed.
int64_t partner_of(const Batch& batch, int64_t index) {
  const MixRow mix = read(batch.mix, index);
  return mix.mode == Mode::none ? index : mix.partner;
}

// An image before its last stage, in memory that is used again for the next.
struct Stage {
  std::vector<uint8_t> pixels;
  Tables tables;
  PlanRow row;

  Staged make(const Batch& batch, int64_t index) {
    row = read(batch.rows, index);
    uint8_t* image = at_least(pixels, image_bytes(batch));
    resize_image(batch.data, row, batch.size, image);
    run_ops(image, batch.size, batch.size, row.ops, layers, tables);
    return {image, &tables, &row};
  }
};

}  // namespace

void check_rows(const Batch& batch) {
  for (int64_t index = 0; index < batch.count; ++index) {
    const PlanRow row = read(batch.rows, index);
    const RowProblem problem = row_problem(row, batch.data_bytes, batch.size);
    if (problem == RowProblem::none) continue;
    std::string text = "row " + std::to_string(index) + ": " + describe(problem) + ": (" + std::to_string(row.offset);
    for (const int32_t value : {row.height, row.width, row.box.top, row.box.left, row.box.height, row.box.width,
                                row.resized_height, row.resized_width, row.window_top, row.window_left,
                                static_cast<int32_t>(row.filter), row.flip})
      text += ", " + std::to_string(value);
    throw std::invalid_argument(text + ") as offset, height, width, box, resized, window, filter, flip");
  }
  if (batch.mix) check_mix(batch.mix, batch.count, batch.size);
}

void check_mix(const MixRow* mix, int64_t count, int32_t size) {
  for (int64_t index = 0; index < count; ++index) {
    const MixProblem problem = mix_problem(read(mix, index), count, size);
    if (problem != MixProblem::none)
      throw std::invalid_argument("mix row " + std::to_string(index) + ": " + describe(problem));
  }
}

void check_calls(const OpBatch& batch) {
  for (int64_t index = 0; index < batch.count; ++index)
    if (!is_good(read(batch.calls, index)))
      throw std::invalid_argument("call " + std::to_string(index) + ": " + describe(RowProblem::op));
}

void resize(const Batch& batch, int64_t begin, int64_t end, uint8_t* images) {
  for (int64_t index = begin; index < end; ++index)
    resize_image(batch.data, read(batch.rows, index), batch.size, images + index * image_bytes(batch));
}

void run_ops(const OpBatch& batch, int64_t begin, int64_t end) {
  const int64_t pixels = int64_t{batch.height} * batch.width;
  for (int64_t index = begin; index < end; ++index) {
    uint8_t* image = batch.images + index * channels * pixels;
    const OpCall call = read(batch.calls, index);
    Tables tables;
    run_ops(image, batch.height, batch.width, &call, 1, tables);
    apply_tables(image, pixels, tables);
  }
}

void apply(const Batch& batch, int64_t begin, int64_t end, const Finish& finish, void* output) {
  thread_local Stage stage;
  const LevelValues values = level_values(finish);
  const bool past_caches = is_large(batch, finish);
  for (int64_t index = begin; index < end; ++index) {
    const Staged own = stage.make(batch, index);
    finish_image(own, nullptr, nullptr, batch.size, values, finish, past_caches,
                 place_in(output, batch, index, finish));
  }
  if (past_caches) finish_past_caches();
}

std::vector<int64_t> mixed_parts(const Batch& batch) {
  std::vector<int64_t> parts;
  for (int64_t index = 0; index < batch.count; ++index) {
    const int64_t partner = partner_of(batch, index);
    if (partner >= index || partner_of(batch, partner) != index) parts.push_back(index);
  }
  return parts;
}

void apply_mixed(const Batch& batch, const int64_t* parts, int64_t begin, int64_t end, const Finish& finish,
                 void* output) {
  thread_local Stage stages[2];
  const LevelValues values = level_values(finish);
  const bool past_caches = is_large(batch, finish);
  for (const int64_t* part = parts + begin; part < parts + end; ++part) {
    const int64_t index = *part, other = partner_of(batch, index);
    const Staged own = stages[0].make(batch, index);
    const Staged partner = other == index ? own : stages[1].make(batch, other);
    const MixRow mix = read(batch.mix, index);
    finish_image(own, &partner, &mix, batch.size, values, finish, past_caches, place_in(output, batch, index, finish));
    if (other == index || partner_of(batch, other) != index) continue;
    const MixRow back = read(batch.mix, other);
    finish_image(partner, &own, &back, batch.size, values, finish, past_caches, place_in(output, batch, other, finish));
  }
  if (past_caches) finish_past_caches();
}

}  // namespace deit::cpu
