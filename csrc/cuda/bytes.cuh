// Four bytes of a word at once: choosing them and dot products of them, an instruction each on a card.
#pragma once

#include <cstdint>

#include "block.cuh"

namespace deit::cuda {

#ifdef __CUDA_ARCH__
// Four of the eight bytes of two words; digit i of the selector says which becomes byte i.
DEVICE uint32_t permuted(uint32_t low, uint32_t high, uint32_t selector) { return __byte_perm(low, high, selector); }
// 255 for each byte whose highest bit is set, else 0.
DEVICE uint32_t sign_bytes(uint32_t word) {
  asm("prmt.b32 %0, %0, 0, 0xBA98;" : "+r"(word));
  return word;
}
DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }
// sum + a.b of four unsigned bytes each.
DEVICE uint32_t dot4(uint32_t a, uint32_t b, uint32_t sum) {
  asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(sum));
  return sum;
}
// sum + a.b of two signed numbers of 16 bits and the unsigned bytes 0 and 1 of b, or 2 and 3.
DEVICE int32_t dot2_low(uint32_t a, uint32_t b, int32_t sum) {
  asm("dp2a.lo.s32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(sum));
  return sum;
}
DEVICE int32_t dot2_high(uint32_t a, uint32_t b, int32_t sum) {
  asm("dp2a.hi.s32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(sum));
  return sum;
}
#else
DEVICE uint32_t permuted(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = uint64_t{high} << 32 | low;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(both >> (8 * (selector >> 4 * i & 7)) & 255) << 8 * i;
  return word;
}
DEVICE uint32_t sign_bytes(uint32_t word) { return (word >> 7 & 0x01010101) * 255; }
DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
DEVICE uint32_t dot4(uint32_t a, uint32_t b, uint32_t sum) {
  for (int i = 0; i < 32; i += 8) sum += (a >> i & 255) * (b >> i & 255);
  return sum;
}
DEVICE int32_t dot2_low(uint32_t a, uint32_t b, int32_t sum) {
  for (int i = 0; i < 2; ++i) sum += static_cast<int16_t>(a >> 16 * i) * static_cast<int32_t>(b >> 8 * i & 255);
  return sum;
}
DEVICE int32_t dot2_high(uint32_t a, uint32_t b, int32_t sum) { return dot2_low(a, b >> 16, sum); }
#endif

// A word for each channel: of four pixels of a line, or of the four taps of a sum.
struct Planes {
  uint32_t channel[3];
};

// Of the four pixels in 12 bytes.
DEVICE Planes planes_of(uint32_t first, uint32_t second, uint32_t third) {
  return {{permuted(permuted(first, second, 0x0630), third, 0x5210),
           permuted(permuted(first, second, 0x0741), third, 0x6210),
           permuted(permuted(first, second, 0x0052), third, 0x7410)}};
}

// A word of four levels, clipped to bytes.
DEVICE uint32_t four_levels(int32_t first, int32_t second, int32_t third, int32_t fourth) {
  return packed(first, second, packed(third, fourth, 0));
}

}  // namespace deit::cuda
