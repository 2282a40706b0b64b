// The ops that need the gray level of pixels: colour, and contrast's mean. Written a second time for AVX-512, where
// compilers do not find how to take pixels apart; the integers and floats are the same.
#include <array>

#include "../arithmetic/colour.h"
#include "stages.h"

namespace deit::cpu {
namespace {

VECTOR_CLONES uint64_t gray_sum_portable(const uint8_t* image, int64_t pixels) {
  constexpr int64_t run = 1 << 16;  // whose sum fits 32 bits
  uint64_t total = 0;
  for (int64_t begin = 0; begin < pixels; begin += run) {
    const int64_t count = pixels - begin < run ? pixels - begin : run;
    const uint8_t* pixel = image + channels * begin;
    uint32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += gray(pixel[3 * i], pixel[3 * i + 1], pixel[3 * i + 2]);
    total += sum;
  }
  return total;
}

VECTOR_CLONES void blend_with_gray_portable(uint8_t* image, int64_t pixels, float factor) {
  for (int64_t i = 0; i < pixels; ++i) {
    uint8_t* pixel = image + channels * i;
    const int32_t red = pixel[0], green = pixel[1], blue = pixel[2], degenerate = gray(red, green, blue);
    pixel[0] = blend(degenerate, red, factor);
    pixel[1] = blend(degenerate, green, factor);
    pixel[2] = blend(degenerate, blue, factor);
  }
}

#ifdef DEIT_AVX512
constexpr int width = sizeof(__m512i);  // bytes of a register, and pixels at once
using Bytes = std::array<uint8_t, width>;

// Byte i of a channel's register among the bytes of 64 pixels.
constexpr Bytes place_in_pixels(int channel) {
  Bytes place{};
  for (int i = 0; i < width; ++i) place[i] = static_cast<uint8_t>(channels * i + channel);
  return place;
}

// Byte i of the third `part` of 64 pixels among the channels' registers.
constexpr Bytes place_in_channels(int part) {
  Bytes place{};
  for (int i = 0; i < width; ++i) {
    const int at = width * part + i;
    place[i] = static_cast<uint8_t>(at % 3 * width + at / 3);
  }
  return place;
}

AVX512 inline __m512i load(const Bytes& bytes) { return _mm512_loadu_si512(bytes.data()); }

// The bytes at places 0 to 191 of three registers.
AVX512 inline __m512i pick(const __m512i (&from)[3], __m512i place) {
  const __m512i of_two = _mm512_permutex2var_epi8(from[0], place, from[1]);
  return _mm512_mask_permutexvar_epi8(of_two, _mm512_movepi8_mask(place), place, from[2]);
}

AVX512 inline uint64_t first_bits(int64_t count) {
  return count <= 0 ? 0 : count >= width ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// Red, green and blue of up to 64 pixels; those behind the last are 0.
AVX512 inline void load_channels(const uint8_t* pixels, int64_t count, __m512i (&channel)[3]) {
  static constexpr Bytes place[3] = {place_in_pixels(0), place_in_pixels(1), place_in_pixels(2)};
  __m512i given[3];
  for (int i = 0; i < 3; ++i)
    given[i] = _mm512_maskz_loadu_epi8(first_bits(channels * count - width * i), pixels + width * i);
  for (int c = 0; c < 3; ++c) channel[c] = pick(given, load(place[c]));
}

AVX512 inline void store_channels(const __m512i (&channel)[3], int64_t count, uint8_t* pixels) {
  static constexpr Bytes place[3] = {place_in_channels(0), place_in_channels(1), place_in_channels(2)};
  for (int i = 0; i < 3; ++i) {
    const __mmask64 mask = first_bits(channels * count - width * i);
    _mm512_mask_storeu_epi8(pixels + width * i, mask, pick(channel, load(place[i])));
  }
}

// Forms without a mask make GCC 12 warn of its own header.
constexpr __mmask16 all = 0xFFFF;

AVX512 inline __m256i half_of(__m512i bytes, int half) {
  return half ? _mm512_maskz_extracti64x4_epi64(0xF, bytes, 1) : _mm512_maskz_extracti64x4_epi64(0xF, bytes, 0);
}

AVX512 inline __m512i half_as_words(__m512i bytes, int half) {
  return _mm512_maskz_cvtepu8_epi16(~__mmask32{0}, half_of(bytes, half));
}

// gray() of 32 pixels in words. Green's weight leaves 16 bits, but for a whole green.
AVX512 inline __m512i gray_words(__m512i red, __m512i green, __m512i blue) {
  const __m512i weights = _mm512_set1_epi32((38470 - 65536) * 65536 + 19595), weight = _mm512_set1_epi32(7471);
  const __m512i half = _mm512_set1_epi32(0x8000), zero = _mm512_setzero_si512();
  const auto parts = [&](__m512i red_green, __m512i blue_0) AVX512 {
    const __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(red_green, weights), _mm512_madd_epi16(blue_0, weight));
    return _mm512_maskz_srai_epi32(all, _mm512_add_epi32(sum, half), 16);
  };
  const __m512i low = parts(_mm512_unpacklo_epi16(red, green), _mm512_unpacklo_epi16(blue, zero));
  const __m512i high = parts(_mm512_unpackhi_epi16(red, green), _mm512_unpackhi_epi16(blue, zero));
  return _mm512_add_epi16(_mm512_packs_epi32(low, high), green);
}

AVX512 uint64_t gray_sum_in_registers(const uint8_t* image, int64_t pixels) {
  __m512i total = _mm512_setzero_si512();
  for (int64_t i = 0; i < pixels; i += width) {
    __m512i channel[3];
    load_channels(image + channels * i, pixels - i, channel);
    __m512i sum = _mm512_setzero_si512();
    for (int half = 0; half < 2; ++half)
      sum = _mm512_add_epi16(sum, gray_words(half_as_words(channel[0], half), half_as_words(channel[1], half),
                                             half_as_words(channel[2], half)));
    const __m512i pairs = _mm512_madd_epi16(sum, _mm512_set1_epi16(1)), zero = _mm512_setzero_si512();
    total = _mm512_add_epi64(total, _mm512_add_epi64(_mm512_maskz_unpacklo_epi32(all, pairs, zero),
                                                     _mm512_maskz_unpackhi_epi32(all, pairs, zero)));
  }
  uint64_t sums[8], sum = 0;
  _mm512_storeu_si512(sums, total);
  for (const uint64_t part : sums) sum += part;
  return sum;
}

// blend() of 16 pixels, not yet clipped to 0; NaN becomes negative.
AVX512 inline __m512i blended(__m512i degenerate, __m512i level, __m512 factor) {
  const __m512 step = _mm512_mul_ps(factor, _mm512_maskz_cvtepi32_ps(all, _mm512_sub_epi32(level, degenerate)));
  const __m512 value = _mm512_add_ps(_mm512_maskz_cvtepi32_ps(all, degenerate), step);
  return _mm512_maskz_cvttps_epi32(all, _mm512_maskz_min_ps(all, _mm512_set1_ps(255.0f), value));
}

AVX512 void blend_with_gray_in_registers(uint8_t* image, int64_t pixels, float factor) {
  const __m512 factors = _mm512_set1_ps(factor);
  // Packing takes 16 bytes of each register in turn.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int64_t i = 0; i < pixels; i += width) {
    __m512i channel[3], degenerate[4];
    load_channels(image + channels * i, pixels - i, channel);
    for (int half = 0; half < 2; ++half) {
      const __m512i words = gray_words(half_as_words(channel[0], half), half_as_words(channel[1], half),
                                       half_as_words(channel[2], half));
      degenerate[2 * half] = _mm512_maskz_cvtepu16_epi32(all, half_of(words, 0));
      degenerate[2 * half + 1] = _mm512_maskz_cvtepu16_epi32(all, half_of(words, 1));
    }
    for (__m512i& levels : channel) {
      __m512i quarter[4];
      const __m128i bytes[4] = {
          _mm512_maskz_extracti32x4_epi32(0xF, levels, 0), _mm512_maskz_extracti32x4_epi32(0xF, levels, 1),
          _mm512_maskz_extracti32x4_epi32(0xF, levels, 2), _mm512_maskz_extracti32x4_epi32(0xF, levels, 3)};
      for (int q = 0; q < 4; ++q)
        quarter[q] = blended(degenerate[q], _mm512_maskz_cvtepu8_epi32(all, bytes[q]), factors);
      const __m512i packed = _mm512_packus_epi16(_mm512_packs_epi32(quarter[0], quarter[1]),
                                                 _mm512_packs_epi32(quarter[2], quarter[3]));
      levels = _mm512_maskz_permutexvar_epi32(all, order, packed);
    }
    store_channels(channel, pixels - i, image + channels * i);
  }
}
#endif

}  // namespace

uint64_t gray_sum(const uint8_t* image, int64_t pixels) {
#ifdef DEIT_AVX512
  if (has_avx512) return gray_sum_in_registers(image, pixels);
#endif
  return gray_sum_portable(image, pixels);
}

void blend_with_gray(uint8_t* image, int64_t pixels, float factor) {
#ifdef DEIT_AVX512
  if (has_avx512) return blend_with_gray_in_registers(image, pixels, factor);
#endif
  blend_with_gray_portable(image, pixels, factor);
}

}  // namespace deit::cpu
