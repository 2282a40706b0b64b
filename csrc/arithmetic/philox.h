// Philox4x32-10: randomness as a pure function of (seed, stream, counter); equal bits to deit_kernels/philox.py.
//
// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#pragma once

#include <cstdint>

#include "host_device.h"

namespace deit {

// What the randomness is for; xor-ed into the key's high word so that no two uses share numbers.
enum class Stream : uint32_t { order = 1, plan = 2, noise = 3, mix = 4, drop_path = 5 };

struct Words {
  uint32_t word[4];
};

HOST_DEVICE uint64_t wide_product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__  // one instruction; of the other form nvcc makes two
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return uint64_t{a} * b;
#endif
}

HOST_DEVICE Words philox(uint64_t seed, Stream stream, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t key_low = static_cast<uint32_t>(seed);
  uint32_t key_high = static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(stream);
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = wide_product(0xD2511F53, c0), right = wide_product(0xCD9E8D57, c2);
    c0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ key_low;
    c1 = static_cast<uint32_t>(right);
    c2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ key_high;
    c3 = static_cast<uint32_t>(left);
    key_low += 0x9E3779B9;
    key_high += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// In [0, 1), exact: 2**-32 times an integer below 2**32 never rounds.
HOST_DEVICE double uniform(uint32_t word) { return word * 0x1p-32; }

// An integer in [0, count): the high half of word * count.
HOST_DEVICE uint32_t one_of(uint32_t word, uint32_t count) {
  return static_cast<uint32_t>((uint64_t{word} * count) >> 32);
}

}  // namespace deit
