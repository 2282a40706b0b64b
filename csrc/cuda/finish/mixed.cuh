// The values of an image and its partner, as the last stage's threads make them: from levels, by mixing, from noise.
#pragma once

#include <cstdint>

#include "../../arithmetic/mix.h"
#include "../../arithmetic/noise.h"
#include "../../arithmetic/normalise.h"
#include "../../arithmetic/plan.h"
#include "places.cuh"

namespace deit::cuda {

// The levels of `count` pixels that lie together, which begin at a multiple of them.
template <int count>
struct Levels {
  uint32_t word[3 * count / 4];

  DEVICE explicit Levels(const uint8_t* pixels) {
    if constexpr (count % 8 == 0) {
      const auto* pairs = reinterpret_cast<const Words2*>(pixels);
      for (int i = 0; i < 3 * count / 8; ++i) {
        const Words2 pair = pairs[i];
        word[2 * i] = pair.word[0];
        word[2 * i + 1] = pair.word[1];
      }
    } else {
      for (int i = 0; i < 3 * count / 4; ++i) word[i] = reinterpret_cast<const uint32_t*>(pixels)[i];
    }
  }

  DEVICE float operator[](int i) const { return static_cast<float>(byte_of(word[i / 4], i % 4)); }

  // Those of `other` instead for the pixels [from, to).
  DEVICE void paste(const Levels& other, int32_t from, int32_t to) {
    const auto upper = [](int32_t bytes) {  // of a word's bytes, those that come after so many
      return bytes <= 0 ? 0xFFFFFFFF : bytes >= 4 ? 0 : 0xFFFFFFFF << (8 * bytes);
    };
    for (int i = 0; i < 3 * count / 4; ++i) {
      const uint32_t pasted = upper(3 * from - 4 * i) & ~upper(3 * to - 4 * i);
      word[i] = (word[i] & ~pasted) | (other.word[i] & pasted);
    }
  }
};

// The pixels of `box` among the four of line y from x on, a bit for each.
DEVICE uint32_t inside(const Box& box, int32_t y, int32_t x) {
  if (y < box.top || y >= box.top + box.height) return 0;
  const int32_t from = smaller(larger(box.left - x, 0), quad), to = smaller(larger(box.left + box.width - x, 0), quad);
  return (1u << to) - (1u << from);
}

DEVICE Box intersection(const Box& a, const Box& b) {
  const int32_t top = larger(a.top, b.top), left = larger(a.left, b.left);
  return {top, left, larger(smaller(a.top + a.height, b.top + b.height) - top, 0),
          larger(smaller(a.left + a.width, b.left + b.width) - left, 0)};
}

// One of three parameters of a kernel. An index would have them copied into memory.
DEVICE float chosen(const float (&of)[3], int c) { return c == 0 ? of[0] : c == 1 ? of[1] : of[2]; }

// An image, its partner and how they are mixed. Neither's row has to be good: then all of it is NaN in the end.
struct Mixed {
  const Finish& finish;
  const Inverses& inverses;
  const uint8_t *own, *partner;
  MixRow mix;
  int32_t size;

  DEVICE float value_of(float level, int c) const {
    return normalise(level, chosen(finish.mean, c), chosen(inverses.inverse, c), chosen(inverses.rest, c));
  }

  // The levels of `count` pixels of line y from x on, if `cuts` with those that CutMix takes from the partner.
  template <int count, bool cuts>
  DEVICE Levels<count> levels_at(int32_t y, int32_t x) const {
    const uint32_t place = 3 * static_cast<uint32_t>(y * size + x);
    const Box& box = mix.box;
    int32_t from = 0, to = 0;  // which of them are the partner's
    if (cuts && mix.mode == Mode::cutmix && box.top <= y && y < box.top + box.height) {
      from = larger(box.left - x, 0);
      to = smaller(box.left + box.width - x, count);
    }
    Levels<count> levels((to - from == count ? partner : own) + place);
    if (from < to && to - from < count) levels.paste(Levels<count>(partner + place), from, to);
    return levels;
  }

  DEVICE float joined(float own_value, float partner_value, bool pasted) const {
    if (mix.mode == Mode::mixup) return own_value * own_share(mix) + partner_value * partner_share(mix);
    return pasted ? partner_value : own_value;
  }

  // One channel of a pixel.
  DEVICE float pixel_at(const PlanRow (&row)[2], int32_t y, int32_t x, int c) const {
    const int32_t pixel = y * size + x;
    const bool pasted = mix.mode == Mode::cutmix && is_pasted(mix, y, x);
    float value[2] = {};
    for (int side = 0; side < 2; ++side) {
      if (mix.mode != Mode::mixup && side != pasted) continue;
      const uint8_t level = (side ? partner : own)[3 * pixel + c];
      value[side] = is_erased(row[side], y, x)  ? noise_at(row[side], pixel, c)
                    : inverses.exact            ? value_of(static_cast<float>(level), c)
                                                : normalise(level, chosen(finish.mean, c), chosen(finish.std, c));
    }
    return joined(value[0], value[1], pasted);
  }

  // The box of erased pixels of which something is seen, of the image or its partner.
  DEVICE Box erased(const PlanRow& row, int side) const {
    if (row.erase == Erase::none || (side == 1 && mix.mode == Mode::none)) return Box{};
    return side == 1 && mix.mode == Mode::cutmix ? intersection(row.erased, mix.box) : row.erased;
  }
};

// The noise of a quad, of the pixels that have a bit in `wanted`.
DEVICE void fill_with_noise(const PlanRow& row, uint32_t number, uint32_t wanted, float (&value)[3 * quad]) {
  const bool colour = row.erase == Erase::random, black = row.erase == Erase::constant;
  for (uint32_t c = 0; c < 3; ++c) {
    const Words words = noise_words(row, colour ? 0 : number, c);
    const NoisePair left = noise_pair(words.word[0], words.word[1]), right = noise_pair(words.word[2], words.word[3]);
    const float noise[quad] = {left.first, colour ? left.first : left.second, colour ? left.first : right.first,
                               colour ? left.first : right.second};
    for (int i = 0; i < quad; ++i)
      if (wanted >> i & 1) value[3 * i + c] = black ? 0.0f : noise[i];
  }
}

}  // namespace deit::cuda
