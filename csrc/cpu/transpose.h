// Four runs of four RGB pixels, transposed. Resizing turns lines into columns by it, the affine ops points into taps.
//
// Written with the vector types of GCC and clang: from SSSE3 and NEON on a shuffle is one instruction, so callers are
// compiled for more than the baseline (VECTOR_CLONES).
#pragma once

#include <cstdint>
#include <cstring>

#include "stages.h"

namespace deit::cpu {

using Bytes = uint8_t __attribute__((vector_size(16)));
using Words = uint32_t __attribute__((vector_size(16)));
using Pairs = uint64_t __attribute__((vector_size(16)));

#ifdef __clang__
#define SHUFFLE_ONE(vector, ...) __builtin_shufflevector(vector, vector, __VA_ARGS__)
#define SHUFFLE_TWO(type, first, second, ...) __builtin_shufflevector(first, second, __VA_ARGS__)
#else
#define SHUFFLE_ONE(vector, ...) __builtin_shuffle(vector, decltype(vector){__VA_ARGS__})
#define SHUFFLE_TWO(type, first, second, ...) __builtin_shuffle(first, second, type{__VA_ARGS__})
#endif

// Run i becomes pixel i of four runs: to[j] = from[0] pixel j, from[1] pixel j, from[2] pixel j, from[3] pixel j.
// Reads 16 bytes and writes 16 bytes at each pointer; the last 4 of each belong to no pixel.
INTO_CLONE void transpose_pixels(const uint8_t* const (&from)[4], uint8_t* const (&to)[4]) {
  Words run[4];
  for (int i = 0; i < 4; ++i) {
    Bytes bytes;
    std::memcpy(&bytes, from[i], sizeof bytes);
    run[i] = reinterpret_cast<Words>(SHUFFLE_ONE(bytes, 0, 1, 2, 12, 3, 4, 5, 13, 6, 7, 8, 14, 9, 10, 11, 15));
  }
  const Pairs low[2] = {reinterpret_cast<Pairs>(SHUFFLE_TWO(Words, run[0], run[1], 0, 4, 1, 5)),
                        reinterpret_cast<Pairs>(SHUFFLE_TWO(Words, run[2], run[3], 0, 4, 1, 5))};
  const Pairs high[2] = {reinterpret_cast<Pairs>(SHUFFLE_TWO(Words, run[0], run[1], 2, 6, 3, 7)),
                         reinterpret_cast<Pairs>(SHUFFLE_TWO(Words, run[2], run[3], 2, 6, 3, 7))};
  const Pairs turned[4] = {SHUFFLE_TWO(Pairs, low[0], low[1], 0, 2), SHUFFLE_TWO(Pairs, low[0], low[1], 1, 3),
                           SHUFFLE_TWO(Pairs, high[0], high[1], 0, 2), SHUFFLE_TWO(Pairs, high[0], high[1], 1, 3)};
  for (int j = 0; j < 4; ++j) {
    const Bytes spread = reinterpret_cast<Bytes>(turned[j]);
    const Bytes bytes = SHUFFLE_ONE(spread, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    std::memcpy(to[j], &bytes, sizeof bytes);
  }
}

#undef SHUFFLE_ONE
#undef SHUFFLE_TWO

}  // namespace deit::cpu
