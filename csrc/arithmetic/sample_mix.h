// Draws how a group of rows is mixed. Runs on the host only.
//
// Source: timm 1.0 Mixup, mode "batch", its generator replaced by Philox with the counter (step, group, draw). Beta is
// X / (X + Y) of two gammas (Marsaglia and Tsang, 2000).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "exact_math.h"
#include "mix.h"
#include "philox.h"
#include "plan.h"

namespace deit {

// What the rows of a step are drawn from: the same bytes as `MIX_NUMBERS` in deit_kernels/augment/mix.py.
struct MixPolicy {
  uint64_t seed, step;
  int64_t start, group;  // position of the first row; rows that mix among themselves
  double mixup_alpha, cutmix_alpha, probability, switch_probability;
  int32_t size, round_up;  // of the output; whether a box of odd side keeps its last pixel
};
static_assert(sizeof(MixPolicy) == 72, "the bytes of MIX_NUMBERS in mix.py");

// The ranges that the draws below rely on; Python's Mix checks them too, with a message for each.
inline bool is_good(const MixPolicy& policy) {
  const auto is_alpha = [](double alpha) { return alpha == 0.0 || (alpha >= 0.01 && alpha <= 100.0); };
  return policy.start >= 0 && policy.group >= 2 && policy.group % 2 == 0 && is_alpha(policy.mixup_alpha) &&
         is_alpha(policy.cutmix_alpha) && policy.mixup_alpha + policy.cutmix_alpha > 0 && policy.size >= 1 &&
         policy.size <= max_output;
}

// The fourth counter word of a group's draws.
enum MixDraw : uint32_t {
  draw_kind = 0,           // whether to mix, which kind, boosts of the two gammas
  draw_box = 1,            // centre of the box: row, column
  draw_first_gamma = 16,   // try t uses draw_first_gamma + t: two for a normal number, one for its test
  draw_second_gamma = 32,
};

inline Words mix_words(const MixPolicy& policy, uint32_t group, uint32_t draw) {
  return philox(policy.seed, Stream::mix, static_cast<uint32_t>(policy.step), static_cast<uint32_t>(policy.step >> 32),
                group, draw);
}

// In (0, 1].
inline double above_zero(uint32_t word) { return (word + 1.0) * 0x1p-32; }

// A Gamma(alpha) number: one of alpha + 1, times boost ** (1 / alpha).
inline double gamma_number(const MixPolicy& policy, uint32_t group, double alpha, uint32_t boost, uint32_t draw) {
  constexpr uint32_t tries = 16;  // of which each is accepted with a chance above 0.95
  const double d = alpha + 1.0 - 1.0 / 3.0, c = 1.0 / std::sqrt(9.0 * d);
  double result = d;
  for (uint32_t attempt = 0; attempt < tries; ++attempt) {
    const Words bits = mix_words(policy, group, draw + attempt);
    const double x = normals(bits.word[0], bits.word[1]).first, once = 1.0 + c * x, v = once * once * once;
    if (!(v > 0)) continue;
    const double log_u = exact_log(above_zero(bits.word[2]));
    if (log_u < 0.5 * x * x + d - d * v + d * exact_log(v)) {
      result = d * v;
      break;
    }
  }
  // The smallest alpha, 0.01, would underflow: e**-690 is as good as 0.
  return result * exact_exp(std::max(exact_log(above_zero(boost)) / alpha, -690.0));
}

// timm's rand_bbox: a box of share 1 - lam round a random centre, clipped to the image.
inline Box cut_box(const MixPolicy& policy, uint32_t group, double lam) {
  const Words bits = mix_words(policy, group, draw_box);
  const auto side = static_cast<int32_t>(policy.size * std::sqrt(1.0 - lam));
  int32_t low[2], length[2];
  for (int axis = 0; axis < 2; ++axis) {
    const auto centre = static_cast<int32_t>(one_of(bits.word[axis], static_cast<uint32_t>(policy.size)));
    low[axis] = std::clamp(centre - side / 2, 0, policy.size);
    length[axis] = std::clamp(centre + (side + policy.round_up) / 2, 0, policy.size) - low[axis];
  }
  return {low[0], low[1], length[0], length[1]};
}

// The row of every member of a group, but for its partner.
inline MixRow sample_mix_group(const MixPolicy& policy, uint32_t group) {
  const Words first = mix_words(policy, group, draw_kind);
  const bool both = policy.cutmix_alpha > 0 && policy.mixup_alpha > 0;
  const bool cut = both ? uniform(first.word[1]) < policy.switch_probability : policy.cutmix_alpha > 0;
  const double alpha = cut ? policy.cutmix_alpha : policy.mixup_alpha;
  const double one = gamma_number(policy, group, alpha, first.word[2], draw_first_gamma);
  const double other = gamma_number(policy, group, alpha, first.word[3], draw_second_gamma);
  MixRow row{0, cut ? Mode::cutmix : Mode::mixup, one / (one + other), {}};
  if (cut) {
    row.box = cut_box(policy, group, row.lam);
    row.lam = 1.0 - static_cast<double>(row.box.height * row.box.width) / static_cast<double>(policy.size * policy.size);
  }
  if (uniform(first.word[0]) < policy.probability && row.lam < 1.0) return row;
  return {0, Mode::none, 1.0, {}};
}

}  // namespace deit
