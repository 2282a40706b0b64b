// Draws which ops an image gets, by RandAugment, a sub-policy or colour jitter, and what random erasing covers. Host
// only, as sample.h.
//
// Source: timm 1.0 rand_augment_transform, auto_augment_transform and RandomErasing, torchvision's ColorJitter; their
// generators replaced by Philox.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "colour.h"
#include "exact_math.h"
#include "philox.h"
#include "policy.h"

namespace deit {

constexpr double level_denominator = 10.0;  // timm's _LEVEL_DENOM: magnitudes count in tenths

// Python's round(value, 15) for |value| <= 1, but for ties of the product with 1e15, which differ by one in 1e15.
inline double round_to_15_digits(double value) { return std::rint(value * 1e15) / 1e15; }

// Output coordinates to source coordinates, as timm's shear and translate and Pillow's Image.rotate build them.
inline void set_matrix(OpCall& call, int32_t height, int32_t width) {
  double* m = call.matrix;
  std::fill(m, m + 6, 0.0);
  m[0] = m[4] = 1.0;
  if (call.op == Op::shear_x) m[1] = call.arg;
  if (call.op == Op::shear_y) m[3] = call.arg;
  if (call.op == Op::translate_x) m[2] = call.arg;
  if (call.op == Op::translate_y) m[5] = call.arg;
  if (call.op != Op::rotate) return;
  const double degrees = call.arg < 0.0 ? call.arg + 360.0 : call.arg;
  const SinCos angle = exact_sin_cos(-(degrees * (3.141592653589793 / 180.0)));
  const double centre_x = width / 2.0, centre_y = height / 2.0;
  m[0] = m[4] = round_to_15_digits(angle.cos);
  m[1] = round_to_15_digits(angle.sin);
  m[3] = round_to_15_digits(-angle.sin);
  m[2] = m[0] * -centre_x + m[1] * -centre_y + 0.0 + centre_x;
  m[5] = m[3] * -centre_x + m[4] * -centre_y + 0.0 + centre_y;
}

// A level of 0 to 10, or to the policy's maximum, as the op's argument.
inline double argument(Op op, double level, bool negative, bool increasing, int32_t size) {
  const double share = level / level_denominator;
  const auto signed_by_coin = [negative](double value) { return negative ? -value : value; };
  switch (op) {
    case Op::rotate: return signed_by_coin(share * 30.0);
    case Op::shear_x:
    case Op::shear_y: return signed_by_coin(share * 0.3);
    case Op::translate_x:
    case Op::translate_y: return signed_by_coin(share * 0.45) * size;
    case Op::posterize: {
      const int32_t bits = clamped(share * 4, 0, 1000);
      return std::clamp(increasing ? 4 - bits : bits, 0, 8);
    }
    case Op::solarize: {
      const int32_t threshold = clamped(share * 256, 0, 256);
      return increasing ? 256 - threshold : threshold;
    }
    case Op::solarize_add: return clamped(share * 110, 0, 128);
    case Op::color:
    case Op::contrast:
    case Op::brightness:
    case Op::sharpness: return increasing ? std::max(0.1, 1.0 + signed_by_coin(share * 0.9)) : share * 1.8 + 0.1;
    default: return 0.0;
  }
}

inline double magnitude(const Policy& policy, const Words& bits) {
  double level = policy.magnitude;
  if (std::isinf(policy.magnitude_std))
    level = policy.magnitude * uniform(bits.word[2]);
  else if (policy.magnitude_std > 0.0)
    level = policy.magnitude + policy.magnitude_std * normals(bits.word[2], bits.word[3]).first;
  return std::max(0.0, std::min(level, policy.magnitude_max));
}

// The op that `unit` in [0, 1) falls on; weights of ops already taken are 0.
inline Op weighted_op(const double* weight, double unit) {
  double total = 0.0;
  for (int op = 1; op < rand_op_count; ++op) total += weight[op];
  double sum = 0.0;
  const double target = unit * total;
  int chosen = 0;
  for (int op = 1; op < rand_op_count; ++op) {
    if (weight[op] > 0.0 && (chosen == 0 || sum <= target)) chosen = op;
    sum += weight[op];
  }
  return static_cast<Op>(chosen);
}

inline void set_call(const Policy& policy, Op op, double arg, uint32_t filter_word, OpCall& call) {
  call.op = op;
  call.arg = arg;
  if (!is_affine(op)) return;
  call.filter = static_cast<uint8_t>(drawn_filter(policy, filter_word));
  call.fast = static_cast<uint8_t>(policy.fast);
  std::copy(policy.fill, policy.fill + 3, call.fill);
  set_matrix(call, policy.size, policy.size);
}

inline void sample_rand_augment(const Policy& policy, const ImageKey& key, OpCall* calls) {
  double weight[rand_op_count];
  std::copy(policy.weight, policy.weight + rand_op_count, weight);
  const bool weighted = std::any_of(weight, weight + rand_op_count, [](double w) { return w > 0.0; });
  for (int32_t layer = 0; layer < policy.layers; ++layer) {
    const Words bits = plan_words(policy, key, draw_ops + 2 * layer);
    const Op op = weighted ? weighted_op(weight, uniform(bits.word[0])) : static_cast<Op>(1 + one_of(bits.word[0], 15));
    if (weighted) weight[static_cast<int>(op)] = 0.0;  // timm draws weighted ops without, others with replacement
    if (uniform(bits.word[1]) >= policy.op_probability) continue;
    const Words more = plan_words(policy, key, draw_ops + 2 * layer + 1);
    const bool negative = uniform(more.word[0]) < 0.5;
    const double arg = argument(op, magnitude(policy, bits), negative, policy.increasing, policy.size);
    set_call(policy, op, arg, more.word[1], calls[layer]);
  }
}

inline double between(const double* range, double share) { return range[0] + (range[1] - range[0]) * share; }

inline void sample_sub_policy(const Policy& policy, const ImageKey& key, OpCall* calls) {
  const Words group = plan_words(policy, key, draw_group);
  const RandomOp* ops = policy.sub_policy[one_of(group.word[0], static_cast<uint32_t>(policy.sub_policies))];
  for (int32_t layer = 0; layer < sub_ops; ++layer) {
    const RandomOp& drawn = ops[layer];
    const Words bits = plan_words(policy, key, draw_ops + 2 * layer);
    if (uniform(bits.word[1]) >= drawn.probability) continue;
    const Words more = plan_words(policy, key, draw_ops + 2 * layer + 1);
    const double share = uniform(more.word[0]);
    const double arg = drawn.uniform ? between(drawn.range, share) : drawn.range[share >= 0.5];
    set_call(policy, static_cast<Op>(drawn.op), arg, more.word[1], calls[layer]);
  }
}

// The row's last three ops: any of their six orders.
inline void sample_jitter(const Policy& policy, const ImageKey& key, OpCall* calls) {
  constexpr Op jittered[3] = {Op::brightness, Op::contrast, Op::color};
  const uint32_t order = one_of(plan_words(policy, key, draw_group).word[1], 6);
  const uint32_t first = order / 2, second = (first + 1 + order % 2) % 3;
  const uint32_t places[3] = {first, second, 3 - first - second};
  const Words factors = plan_words(policy, key, draw_jitter);
  for (int32_t i = 0; i < 3; ++i) {
    const uint32_t place = places[i];
    set_call(policy, jittered[place], between(policy.color_jitter, uniform(factors.word[place])), 0,
             calls[layers - 3 + i]);
  }
}

inline void sample_ops(const Policy& policy, const ImageKey& key, OpCall* calls) {
  if (policy.sub_policies > 0)
    sample_sub_policy(policy, key, calls);
  else
    sample_rand_augment(policy, key, calls);
  if (policy.color_jitter[0] != policy.color_jitter[1]) sample_jitter(policy, key, calls);
}

// Ten tries; a box must be smaller than the image in both directions, as timm has it.
inline void sample_erased(const Policy& policy, const ImageKey& key, PlanRow& row) {
  constexpr uint32_t tries = 10;
  const double log_low = exact_log(policy.erase_ratio[0]), log_high = exact_log(policy.erase_ratio[1]);
  const double pixels = static_cast<double>(policy.size) * policy.size;
  for (uint32_t attempt = 0; attempt < tries; ++attempt) {
    const Words bits = plan_words(policy, key, draw_erase + attempt);
    const double share = policy.erase_area[0] + (policy.erase_area[1] - policy.erase_area[0]) * uniform(bits.word[0]);
    const double area = share * pixels;
    const double aspect = exact_exp(log_low + (log_high - log_low) * uniform(bits.word[1]));
    const double height = std::rint(std::sqrt(area * aspect)), width = std::rint(std::sqrt(area / aspect));
    if (height >= policy.size || width >= policy.size) continue;
    const auto h = static_cast<int32_t>(height), w = static_cast<int32_t>(width);
    row.erased = {static_cast<int32_t>(one_of(bits.word[2], policy.size - h + 1)),
                  static_cast<int32_t>(one_of(bits.word[3], policy.size - w + 1)), h, w};
    row.erase = policy.erase;
    return;
  }
}

}  // namespace deit
