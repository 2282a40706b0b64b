// The last stage: a uint8 level becomes (x / 255 - mean) / std in float32, rounded once to the output's type.
//
// Source: torchvision's ToTensor and Normalize. The two 16-bit types are made here, bit by bit, so that g++, nvcc and
// NumPy round alike without each other's headers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace deit {

enum class Type { float32, float16, bfloat16 };
HOST_DEVICE int64_t bytes_of(Type type) { return type == Type::float32 ? 4 : 2; }

enum class Layout { nchw, channels_last, patches };

struct Finish {
  float mean[3], std[3];
  Type type;
  Layout layout;
  int32_t patch;  // side of a patch, for Layout::patches
};

// Where the value (y, x) of channel 0 lies in an image's output, and how far the next channel is.
struct Place {
  int64_t first, channel;
};

HOST_DEVICE Place place_of(int32_t y, int32_t x, int32_t size, Layout layout, int32_t patch) {
  if (layout == Layout::channels_last) return {3 * (int64_t{y} * size + x), 1};
  if (layout == Layout::nchw) return {int64_t{y} * size + x, int64_t{size} * size};
  const int64_t number = int64_t{y / patch} * (size / patch) + x / patch, pixels = int64_t{patch} * patch;
  return {3 * pixels * number + y % patch * patch + x % patch, pixels};
}

HOST_DEVICE float normalise(uint8_t level, float mean, float std) { return (level / 255.0f - mean) / std; }

// a * b + c, rounded once.
HOST_DEVICE float fused(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// normalise() without its divisions. level / 255 is level / 256 + level / 65280, which has the quotient's bits for all 256
// levels; 1 / std is `inverse` + `rest`.
HOST_DEVICE float normalise(float level, float mean, float inverse, float rest) {
  const float apart = fused(level, 1.0f / 256, level * (1.0f / 65280)) - mean;
  return fused(apart, inverse, apart * rest);
}

HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

HOST_DEVICE bool is_finite(float value) { return (float_bits(value) & 0x7F800000) != 0x7F800000; }

// What that takes, and whether it has the bits of normalise() for every level: it errs by 2**-48 of a value before it
// rounds, so that hardly a mean and a deviation are without. Host only.
struct Inverses {
  float inverse[3], rest[3];
  int32_t exact;

  Inverses() = default;
  explicit Inverses(const Finish& finish) : exact(1) {
    for (int c = 0; c < 3; ++c) {
      inverse[c] = 1.0f / finish.std[c];
      rest[c] = static_cast<float>(1.0 / double{finish.std[c]} - double{inverse[c]});
      for (int level = 0; level < 256; ++level) {
        const float quick = normalise(static_cast<float>(level), finish.mean[c], inverse[c], rest[c]);
        const float divided = normalise(static_cast<uint8_t>(level), finish.mean[c], finish.std[c]);
        if (float_bits(quick) != float_bits(divided) || !is_finite(divided)) exact = 0;
      }
    }
  }
};

HOST_DEVICE float not_a_number() {
  const uint32_t bits = 0x7FC00000;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To nearest, ties to even.
HOST_DEVICE uint16_t bfloat16_bits(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0;  // NaN
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// To nearest, ties to even.
HOST_DEVICE uint16_t float16_bits(float value) {
  const uint32_t bits = float_bits(value), sign = (bits >> 16) & 0x8000, size = bits & 0x7FFFFFFF;
  if (size > 0x7F800000) return 0x7E00;                                 // NaN
  if (size >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // from 65520 on: infinity
  if (size < 0x38800000) {  // below 2**-14 a half counts in steps of 2**-24, as a float does from 0.5 on
    const float stepped = (value < 0 ? -value : value) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(stepped) - 0x3F000000));
  }
  return static_cast<uint16_t>(sign | ((size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13));
}

template <Type type>
struct Element {
  using Bits = uint16_t;
};
template <>
struct Element<Type::float32> {
  using Bits = uint32_t;
};

template <Type type>
HOST_DEVICE typename Element<type>::Bits element_bits(float value) {
  if constexpr (type == Type::float32) return float_bits(value);
  if constexpr (type == Type::float16) return float16_bits(value);
  if constexpr (type == Type::bfloat16) return bfloat16_bits(value);
}

}  // namespace deit
