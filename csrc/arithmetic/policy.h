// The numbers of a recipe that a plan is drawn from: the same bytes as `POLICY` in deit_kernels/augment/policy.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"
#include "plan.h"

namespace deit {

enum class Crop : int32_t { random_resized = 0, center = 1, simple = 2 };
constexpr int32_t random_filter = 2;  // besides the values of Filter: a coin for each use

constexpr int rand_op_count = 16;  // the ops that RandAugment draws, and none
constexpr int most_sub_policies = 25, sub_ops = 2;

// An op, how likely it is, and where its argument comes from: `RANDOM_OP` in policy.py.
struct RandomOp {
  double probability, range[2];
  int32_t op;
  int32_t uniform;  // the argument is uniform within the range; else one of its bounds
};
static_assert(sizeof(RandomOp) == 32, "the bytes of RANDOM_OP in policy.py");

struct Policy {
  uint64_t seed;
  double scale[2], ratio[2], crop_ratio, flip;
  double op_probability, magnitude, magnitude_std, magnitude_max;
  double weight[rand_op_count];  // of each op, all 0 for equal chances
  double erase_probability, erase_area[2], erase_ratio[2];
  int32_t size;
  Crop crop;
  int32_t pad, interpolation, layers, increasing, fast;
  Erase erase;
  uint8_t fill[8];  // three channels
  double color_jitter[2];  // range of its three factors; 1 and 1: none
  int64_t sub_policies;    // instead of the ops of RandAugment; 0: none
  RandomOp sub_policy[most_sub_policies][sub_ops];
};
static_assert(sizeof(Policy) == 1920, "the bytes of POLICY in policy.py");

struct ImageKey {
  int64_t epoch, sample, copy, height, width;
};

inline Words plan_words(const Policy& policy, const ImageKey& key, uint32_t draw) {
  return philox(policy.seed, Stream::plan, static_cast<uint32_t>(key.epoch), static_cast<uint32_t>(key.sample),
                static_cast<uint32_t>(key.copy), draw);
}

inline Filter drawn_filter(const Policy& policy, uint32_t word) {
  if (policy.interpolation == random_filter) return static_cast<Filter>(one_of(word, 2));
  return static_cast<Filter>(policy.interpolation);
}

// The ranges that the draws below rely on; Python's Policy checks them too, with a message for each.
inline bool is_good(const Policy& policy) {
  const auto within = [](auto value, auto low, auto high) { return low <= value && value <= high; };
  const bool choices = within(policy.size, 1, max_output) && within(policy.crop, Crop::random_resized, Crop::simple) &&
                       within(policy.interpolation, 0, random_filter) && within(policy.layers, 0, layers) &&
                       within(policy.fast, 0, 1) && within(policy.erase, Erase::none, Erase::pixel) &&
                       within(policy.pad, 0, policy.size - 1);
  const auto in_order = [](const double* range, double low, double high) {
    return low < range[0] && range[0] <= range[1] && range[1] <= high;
  };
  bool ops = within(policy.sub_policies, 0, most_sub_policies);
  for (const auto& sub_policy : policy.sub_policy)
    for (const RandomOp& op : sub_policy) ops = ops && within(op.op, 0, op_count - 1);
  return choices && ops && in_order(policy.scale, 0, 1) && in_order(policy.ratio, 0, 100) && policy.crop_ratio > 0 &&
         policy.crop_ratio <= 1 && in_order(policy.erase_area, -1, 1) && in_order(policy.erase_ratio, 0, 100) &&
         std::abs(policy.magnitude) <= 1000 && policy.magnitude_max <= 1000;
}

}  // namespace deit
