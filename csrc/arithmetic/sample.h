// Draws a plan's row. Runs on the host only: the box must be known before the image is decoded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "exact_math.h"
#include "policy.h"
#include "sample_ops.h"

namespace deit {

// timm's RandomResizedCropAndInterpolation.get_params: ten tries, then the largest central box whose ratio is allowed.
// A try whose box rounds to 0 pixels counts as rejected; timm's would fail in the resize.
inline Box random_box(const Policy& policy, const ImageKey& key) {
  constexpr int tries = 10;
  const double log_low = exact_log(policy.ratio[0]), log_high = exact_log(policy.ratio[1]);
  const auto height = static_cast<int32_t>(key.height), width = static_cast<int32_t>(key.width);
  for (uint32_t attempt = 0; attempt < tries; ++attempt) {
    const Words bits = plan_words(policy, key, draw_crop + attempt);
    const double share = policy.scale[0] + (policy.scale[1] - policy.scale[0]) * uniform(bits.word[0]);
    const double area = share * static_cast<double>(key.width * key.height);
    const double aspect = exact_exp(log_low + (log_high - log_low) * uniform(bits.word[1]));
    const double box_width = std::rint(std::sqrt(area * aspect)), box_height = std::rint(std::sqrt(area / aspect));
    if (1 <= box_width && box_width <= width && 1 <= box_height && box_height <= height) {
      const auto h = static_cast<int32_t>(box_height), w = static_cast<int32_t>(box_width);
      return {static_cast<int32_t>(one_of(bits.word[2], height - h + 1)),
              static_cast<int32_t>(one_of(bits.word[3], width - w + 1)), h, w};
    }
  }
  const double shape = static_cast<double>(width) / height;
  int32_t box_height = height, box_width = width;
  if (shape < policy.ratio[0]) box_height = static_cast<int32_t>(std::max(std::rint(width / policy.ratio[0]), 1.0));
  if (shape > policy.ratio[1]) box_width = static_cast<int32_t>(std::max(std::rint(height * policy.ratio[1]), 1.0));
  return {(height - box_height) / 2, (width - box_width) / 2, box_height, box_width};
}

// torchvision's Resize of the shorter side to `side`: the other side keeps the shape, rounded down.
inline void resize_shorter(PlanRow& row, const ImageKey& key, int32_t side) {
  const double shorter = static_cast<double>(std::min(row.height, row.width));
  row.box = {0, 0, row.height, row.width};
  row.resized_height = static_cast<int32_t>(static_cast<double>(side * key.height) / shorter);
  row.resized_width = static_cast<int32_t>(static_cast<double>(side * key.width) / shorter);
}

inline void set_crop(const Policy& policy, const ImageKey& key, PlanRow& row) {
  switch (policy.crop) {
    case Crop::random_resized:
      row.box = random_box(policy, key);
      row.resized_height = row.resized_width = policy.size;
      return;
    case Crop::center:  // torchvision's CenterCrop
      resize_shorter(row, key, static_cast<int32_t>(policy.size / policy.crop_ratio));
      row.window_top = static_cast<int32_t>(std::rint((row.resized_height - policy.size) / 2.0));
      row.window_left = static_cast<int32_t>(std::rint((row.resized_width - policy.size) / 2.0));
      return;
    case Crop::simple: {  // torchvision's RandomCrop(size, padding=pad, padding_mode="reflect")
      resize_shorter(row, key, policy.size);
      row.pad = policy.pad;
      const Words bits = plan_words(policy, key, draw_crop);
      const int32_t down = row.resized_height + 2 * policy.pad - policy.size;
      const int32_t across = row.resized_width + 2 * policy.pad - policy.size;
      row.window_top = static_cast<int32_t>(one_of(bits.word[2], down + 1)) - policy.pad;
      row.window_left = static_cast<int32_t>(one_of(bits.word[3], across + 1)) - policy.pad;
    }
  }
}

inline PlanRow sample_row(const Policy& policy, const ImageKey& key) {
  PlanRow row{};
  row.offset = -1;
  row.height = static_cast<int32_t>(key.height);
  row.width = static_cast<int32_t>(key.width);
  row.epoch = static_cast<uint32_t>(key.epoch);
  row.sample = static_cast<uint32_t>(key.sample);
  row.copy = static_cast<uint32_t>(key.copy);
  row.seed = policy.seed;
  set_crop(policy, key, row);
  const Words bits = plan_words(policy, key, draw_flip);
  row.flip = uniform(bits.word[0]) < policy.flip;
  row.filter = drawn_filter(policy, bits.word[1]);
  sample_ops(policy, key, row.ops);
  if (policy.erase != Erase::none && uniform(bits.word[2]) < policy.erase_probability) sample_erased(policy, key, row);
  return row;
}

}  // namespace deit
