// The ops that change levels where they stand, by an image's CUDA blocks, four levels of a word at once.
#pragma once

#include <cstdint>

#include "../../arithmetic/colour.h"
#include "../../arithmetic/plan.h"
#include "../block.cuh"
#include "../bytes.cuh"

namespace deit::cuda {

// word = changed(word) for all levels, four in a word, whichever channels they are of.
template <typename Changed>
DEVICE void change_words(uint8_t* image, int64_t pixels, const Changed& changed) {
  const Team team = Team::of_image();
  const int64_t bytes = 3 * pixels;
  if (bytes % 16 == 0) {
    auto* four = reinterpret_cast<Words4*>(image);
    for (int64_t i = team.number; i < bytes / 16; i += team.size) {
      Words4 words = four[i];
      for (uint32_t& word : words.word) word = changed(word);
      four[i] = words;
    }
  } else {
    for (int64_t i = team.number; i < bytes; i += team.size) image[i] = static_cast<uint8_t>(changed(image[i]));
  }
}

// visit(word) for the first of the three words of four pixels, whose first level is of channel 0; for each pixel that is
// not among four, visit_last(byte) for its first byte.
template <typename Visit, typename VisitLast>
DEVICE void visit_fours(int64_t pixels, const Visit& visit, const VisitLast& visit_last) {
  const Team team = Team::of_image();
  const int64_t fours = pixels % 4 == 0 ? pixels / 4 : 0;  // else words of a next image are not aligned
  for (int64_t i = team.number; i < fours; i += team.size) visit(3 * i);
  for (int64_t i = 4 * fours + team.number; i < pixels; i += team.size) visit_last(3 * i);
}

// changed(word, i) is a word of four levels of which the first is of channel i % 3.
template <typename Changed>
DEVICE void change_levels(uint8_t* image, int64_t pixels, const Changed& changed) {
  visit_fours(
      pixels,
      [&](int64_t i) {
        auto* words = reinterpret_cast<uint32_t*>(image) + i;
        uint32_t word[3] = {words[0], words[1], words[2]};
        for (int j = 0; j < 3; ++j) word[j] = changed(word[j], j);
        for (int j = 0; j < 3; ++j) words[j] = word[j];
      },
      [&](int64_t i) {
        for (int c = 0; c < 3; ++c) image[i + c] = static_cast<uint8_t>(changed(image[i + c], c));
      });
}

// pixel = changed(pixel) for every pixel; the highest byte of what `changed` returns is 0.
template <typename Changed>
DEVICE void change_pixels(uint8_t* image, int64_t pixels, const Changed& changed) {
  visit_fours(
      pixels,
      [&](int64_t i) {
        auto* words = reinterpret_cast<uint32_t*>(image) + i;
        Words4 four = four_pixels(words[0], words[1], words[2]);
        for (int k = 0; k < 4; ++k) four.word[k] = changed(four.word[k]);
        words[0] = permuted(four.word[0], four.word[1], 0x4210);
        words[1] = permuted(four.word[1], four.word[2], 0x5421);
        words[2] = permuted(four.word[2], four.word[3], 0x6542);
      },
      [&](int64_t i) {
        const uint32_t pixel = changed(pixel_at(image + i));
        for (int c = 0; c < 3; ++c) image[i + c] = static_cast<uint8_t>(level_of(pixel, c));
      });
}

DEVICE uint32_t gray_of(uint32_t pixel) {
  return static_cast<uint32_t>(gray(level_of(pixel, 0), level_of(pixel, 1), level_of(pixel, 2)));
}

// blend() of arithmetic/colour.h before it is clipped to a byte.
DEVICE int32_t blended(int32_t degenerate, int32_t level, float factor) {
  return cut_off(static_cast<float>(degenerate) + factor * static_cast<float>(level - degenerate));
}

// changed(level), clipped to a byte, of four levels.
template <typename Changed>
DEVICE uint32_t each_level(uint32_t word, const Changed& changed) {
  return packed(changed(byte_of(word, 0)), changed(byte_of(word, 1)),
                packed(changed(byte_of(word, 2)), changed(byte_of(word, 3)), 0));
}

// 255 for each level from `threshold` on, 0 to 256, and 0 for the others.
DEVICE uint32_t levels_from(uint32_t word, int32_t threshold) {
  const uint32_t low = static_cast<uint32_t>(threshold & 127) * 0x01010101;
  const uint32_t reach = (word | 0x80808080) - low;  // a highest bit: whether the other seven reach the threshold's
  return threshold > 255 ? 0 : sign_bytes(threshold > 127 ? word & reach : word | reach);
}

// Four levels with `added`, 0 to 255, at most 255.
DEVICE uint32_t sums_below_128(uint32_t word, int32_t added) {
  const uint32_t sum = (word & 0x7F7F7F7F) + static_cast<uint32_t>(added & 127) * 0x01010101;
  return added > 127 ? sum | 0x80808080 | sign_bytes(sum) : sum;
}

// An op that changes each level by itself. mean: the gray level that contrast needs.
DEVICE void change_by_level(uint8_t* image, int64_t pixels, const OpCall& call, int32_t mean) {
  const auto factor = static_cast<float>(call.arg);
  const auto change = [&](const auto& changed) { change_words(image, pixels, changed); };
  switch (call.op) {
    case Op::invert: change([](uint32_t word) { return ~word; }); break;
    case Op::posterize: {
      const uint32_t kept = (0xFF00u >> clamped(call.arg, 0, 8) & 0xFF) * 0x01010101;
      change([=](uint32_t word) { return word & kept; });
      break;
    }
    case Op::solarize: {
      const int32_t threshold = clamped(call.arg, 0, 256);
      change([=](uint32_t word) { return word ^ levels_from(word, threshold); });
      break;
    }
    case Op::solarize_add: {
      const int32_t added = clamped(call.arg, 0, 255);
      change([=](uint32_t word) {
        const uint32_t high = sign_bytes(word);
        return (word & high) | (sums_below_128(word, added) & ~high);
      });
      break;
    }
    default:  // contrast, and brightness, whose mean is 0
      change([=](uint32_t word) {
        return each_level(word, [=](int32_t level) { return blended(mean, level, factor); });
      });
  }
}

DEVICE void change_colour(uint8_t* image, int64_t pixels, float factor) {
  change_pixels(image, pixels, [=](uint32_t pixel) {
    const auto degenerate = static_cast<int32_t>(gray_of(pixel));
    const auto level = [&](int c) { return blended(degenerate, level_of(pixel, c), factor); };
    return packed(level(0), level(1), packed(level(2), 0, 0));
  });
}

}  // namespace deit::cuda
