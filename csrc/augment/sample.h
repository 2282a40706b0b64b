// Draws a plan's row. Runs on the host only: the box must be known before the image is decoded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "exact_math.h"
#include "philox.h"
#include "plan.h"

namespace deit {

enum class Crop { random_resized, center };

struct Policy {
  uint64_t seed;
  int32_t size;
  Crop crop;
  double scale[2], ratio[2];
  double crop_ratio;
  Filter filter;
  double flip;
};

struct ImageKey {
  int64_t epoch, sample, copy, height, width;
};

// timm's RandomResizedCropAndInterpolation.get_params: ten tries, then the largest central box whose ratio is allowed.
// A try whose box rounds to 0 pixels counts as rejected; timm's would fail in the resize.
inline Box random_box(const Policy& policy, const ImageKey& key) {
  constexpr int tries = 10;
  const double log_low = exact_log(policy.ratio[0]), log_high = exact_log(policy.ratio[1]);
  const auto height = static_cast<int32_t>(key.height), width = static_cast<int32_t>(key.width);
  for (uint32_t attempt = 0; attempt < tries; ++attempt) {
    const Words bits = philox(policy.seed, Stream::plan, static_cast<uint32_t>(key.epoch),
                              static_cast<uint32_t>(key.sample), static_cast<uint32_t>(key.copy), draw_crop + attempt);
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

inline PlanRow sample_row(const Policy& policy, const ImageKey& key) {
  PlanRow row{};
  row.offset = -1;
  row.height = static_cast<int32_t>(key.height);
  row.width = static_cast<int32_t>(key.width);
  row.filter = policy.filter;
  if (policy.crop == Crop::random_resized) {
    row.box = random_box(policy, key);
    row.resized_height = row.resized_width = policy.size;
  } else {  // torchvision's Resize of the shorter side, then CenterCrop
    row.box = {0, 0, row.height, row.width};
    const auto side = static_cast<int32_t>(policy.size / policy.crop_ratio);
    const double shorter = static_cast<double>(std::min(row.height, row.width));
    row.resized_height = static_cast<int32_t>(static_cast<double>(side * key.height) / shorter);
    row.resized_width = static_cast<int32_t>(static_cast<double>(side * key.width) / shorter);
    row.window_top = static_cast<int32_t>(std::rint((row.resized_height - policy.size) / 2.0));
    row.window_left = static_cast<int32_t>(std::rint((row.resized_width - policy.size) / 2.0));
  }
  const Words bits = philox(policy.seed, Stream::plan, static_cast<uint32_t>(key.epoch),
                            static_cast<uint32_t>(key.sample), static_cast<uint32_t>(key.copy), draw_flip);
  row.flip = uniform(bits.word[0]) < policy.flip;
  return row;
}

}  // namespace deit
