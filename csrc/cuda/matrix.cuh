// Products of matrices of bytes by the tensor cores, exact in int32: 16 x 32 by 32 x 8, added to 16 x 8 sums.
//
// A warp's 32 lanes hold a matrix together, some words each. Lane `lane` is of group lane / 4 and at place lane % 4:
//   left    word 0 of four: row `group`, depths 4 place to 4 place + 3; word 1: row group + 8; words 2 and 3: depths 16 on
//   right   word 0 of two: column `group`, depths 4 place to 4 place + 3; word 1: depths 16 on
//   sums    0 and 1: row `group`, columns 2 place and 2 place + 1; 2 and 3: row group + 8
//
// Source: PTX ISA, "Matrix fragments for mma.m16n8k32".
#pragma once

#include <cstdint>

#include "../arithmetic/host_device.h"

namespace deit::cuda {

constexpr int32_t warp_lanes = 32;

DEVICE int32_t group_of(int32_t lane) { return lane >> 2; }
DEVICE int32_t place_of(int32_t lane) { return lane & 3; }

// A thread's words of a matrix: load(lane, i) gives word i of a lane. On the CPU, where no thread knows what the others
// hold, each holds the words of all lanes.
template <int words>
struct Fragment {
#ifdef __CUDA_ARCH__
  uint32_t word[words];

  Fragment() = default;
  template <typename Load>
  DEVICE explicit Fragment(const Load& load) {
    for (int i = 0; i < words; ++i) word[i] = load(static_cast<int32_t>(threadIdx.x) % warp_lanes, i);
  }
#else
  uint32_t word[warp_lanes][words];

  Fragment() = default;
  template <typename Load>
  explicit Fragment(const Load& load) {
    for (int32_t lane = 0; lane < warp_lanes; ++lane)
      for (int i = 0; i < words; ++i) word[lane][i] = load(lane, i);
  }

  template <bool is_signed>
  int32_t byte(int32_t lane, int32_t i, int32_t place) const {
    const uint32_t value = word[lane][i] >> 8 * place & 255;
    return is_signed ? static_cast<int8_t>(value) : static_cast<int32_t>(value);
  }
#endif
};
using Left = Fragment<4>;
using Right = Fragment<2>;

// sum = addend + left * right, which may be one array. All lanes of a warp call it together.
template <bool left_signed, bool right_signed>
DEVICE void multiply_add(const Left& left, const Right& right, const int32_t (&addend)[4], int32_t (&sum)[4]) {
#ifdef __CUDA_ARCH__
#define DEIT_MMA(types)                                                                                         \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." types ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "      \
      "{%10, %11, %12, %13};"                                                                                   \
      : "=r"(sum[0]), "=r"(sum[1]), "=r"(sum[2]), "=r"(sum[3])                                                  \
      : "r"(left.word[0]), "r"(left.word[1]), "r"(left.word[2]), "r"(left.word[3]), "r"(right.word[0]),         \
        "r"(right.word[1]), "r"(addend[0]), "r"(addend[1]), "r"(addend[2]), "r"(addend[3]))
  static_assert(!left_signed || !right_signed);
  if constexpr (left_signed) DEIT_MMA("s8.u8");
  else if constexpr (right_signed) DEIT_MMA("u8.s8");
  else DEIT_MMA("u8.u8");
#undef DEIT_MMA
#else
  const int32_t lane = threadIdx.x % warp_lanes;
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t row = lane / 4, column = 2 * (lane % 4) + i % 2;
    int32_t value = addend[i];
    for (int32_t depth = 0; depth < 32; ++depth)
      value += left.byte<left_signed>(4 * row + depth % 16 / 4, i / 2 + 2 * (depth / 16), depth % 4) *
               right.byte<right_signed>(4 * column + depth % 16 / 4, depth / 16, depth % 4);
    sum[i] = value;
  }
#endif
}

}  // namespace deit::cuda
