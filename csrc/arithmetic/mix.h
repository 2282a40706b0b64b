// Mixup and CutMix in the last stage: what one row of a batch takes from its partner.
//
// Source: timm 1.0 Mixup, mode "batch", in float32: x * lam + partner * (1 - lam), or the partner's pixels in a box.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "plan.h"

namespace deit {

enum class Mode : int32_t { none = 0, mixup = 1, cutmix = 2 };

// The same bytes as `MIX` in deit_kernels/augment/mix.py.
struct MixRow {
  int32_t partner;  // index into the rows of this batch
  Mode mode;
  double lam;  // share of the row itself
  Box box;     // for cutmix, in pixels of the output
};
static_assert(sizeof(MixRow) == 32, "the bytes of MIX in mix.py");

enum class MixProblem { none, partner, mode, lam, box };

HOST_DEVICE MixProblem mix_problem(const MixRow& mix, int64_t count, int32_t size) {
  if (mix.partner < 0 || mix.partner >= count) return MixProblem::partner;
  if (mix.mode < Mode::none || mix.mode > Mode::cutmix) return MixProblem::mode;
  if (!(mix.lam >= 0.0 && mix.lam <= 1.0)) return MixProblem::lam;
  const Box& box = mix.box;
  if (box.top < 0 || box.left < 0 || box.height < 0 || box.width < 0 || box.top > size - box.height ||
      box.left > size - box.width)
    return MixProblem::box;
  return MixProblem::none;
}

HOST_DEVICE float own_share(const MixRow& mix) { return static_cast<float>(mix.lam); }
HOST_DEVICE float partner_share(const MixRow& mix) { return static_cast<float>(1.0 - mix.lam); }

HOST_DEVICE bool is_pasted(const MixRow& mix, int32_t y, int32_t x) {
  const Box& box = mix.box;
  return box.top <= y && y < box.top + box.height && box.left <= x && x < box.left + box.width;
}

}  // namespace deit
