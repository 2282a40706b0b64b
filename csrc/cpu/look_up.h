// Pixels to values by tables, one for each channel.
//
// Where the processor looks bytes up in registers (AVX-512 VBMI), a table of wider values is one of bytes for each of
// their bytes. Pixels are taken apart in the order that putting values together from bytes turns into theirs.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "stages.h"

namespace deit::cpu {

constexpr int levels = 256;

// A value of 2 or 4 bytes for every level of each channel.
template <typename Value>
class Table {
 public:
  template <typename Function>
  explicit Table(const Function& value_of) {
    for (int c = 0; c < channels; ++c)
      for (int level = 0; level < levels; ++level) values[c][level] = value_of(c, level);
#ifdef DEIT_AVX512
    if (has_avx512) split();
#endif
  }

  const Value* operator[](int channel) const { return values[channel]; }

  // `count` pixels into a run for each channel; `past_caches`: where the processor can, whole registers go to memory.
  void look_up(const uint8_t* pixels, int64_t count, Value* red, Value* green, Value* blue,
               [[maybe_unused]] bool past_caches) const {
#ifdef DEIT_AVX512
    if (has_avx512 && count >= worth_while) {
      look_up_in_registers<0>(pixels, count, red, past_caches);
      look_up_in_registers<1>(pixels, count, green, past_caches);
      return look_up_in_registers<2>(pixels, count, blue, past_caches);
    }
#endif
    for (int64_t i = 0; i < count; ++i, pixels += channels) {
      red[i] = values[0][pixels[0]];
      green[i] = values[1][pixels[1]];
      blue[i] = values[2][pixels[2]];
    }
  }

 private:
  Value values[channels][levels];

#ifdef DEIT_AVX512
  static constexpr int width = sizeof(__m512i), bytes = sizeof(Value), per_register = width / bytes;
  static constexpr int64_t worth_while = width / 2;  // pixels; less would leave most of a register empty
  uint8_t byte[channels][bytes][levels];             // of every value, from the lowest

  AVX512 void split() {
    constexpr int lanes = width / 4;
    constexpr __mmask16 all = 0xFFFF;  // forms without a mask make GCC 12 warn of its own header
    for (int c = 0; c < channels; ++c)
      for (int level = 0; level < levels; level += lanes) {
        __m512i whole;  // lanes of 4 bytes
        if constexpr (bytes == 4)
          whole = _mm512_loadu_si512(values[c] + level);
        else
          whole = _mm512_maskz_cvtepu16_epi32(
              all, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values[c] + level)));
        for (int b = 0; b < bytes; ++b, whole = _mm512_maskz_srli_epi32(all, whole, 8))
          _mm_storeu_si128(reinterpret_cast<__m128i*>(byte[c][b] + level), _mm512_maskz_cvtepi32_epi8(all, whole));
      }
  }

  // Where the level that belongs in each byte of a register is found among those of 64 pixels. Unpacking bytes to
  // values works within lanes of 16 bytes: register k gets the pixels per_lane * k ... of every lane.
  static constexpr std::array<uint8_t, width> places(int channel) {
    constexpr int lane = 16, per_lane = lane / bytes;
    std::array<uint8_t, width> place{};
    for (int at = 0; at < width; ++at) {
      const int k = at % lane / per_lane, pixel = per_register * k + per_lane * (at / lane) + at % per_lane;
      place[at] = static_cast<uint8_t>(channels * pixel + channel);
    }
    return place;
  }

  // The lowest `count` bits.
  static uint64_t first_bits(int64_t count) {
    return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  }

  template <int channel>
  AVX512 void look_up_in_registers(const uint8_t* pixels, int64_t count, Value* to, bool past_caches) const {
    if (reinterpret_cast<uintptr_t>(to) % width) past_caches = false;
    static constexpr std::array<uint8_t, width> place = places(channel);
    const __m512i index = _mm512_loadu_si512(place.data());
    const __mmask64 in_third = _mm512_movepi8_mask(index);  // from byte 128 on
    __m512i table[bytes][4];
    for (int b = 0; b < bytes; ++b)
      for (int quarter = 0; quarter < 4; ++quarter)
        table[b][quarter] = _mm512_loadu_si512(byte[channel][b] + width * quarter);
    for (; count > 0; count -= width, pixels += channels * width, to += width) {
      __m512i given[channels];
      for (int i = 0; i < channels; ++i)
        given[i] = _mm512_maskz_loadu_epi8(first_bits(channels * count - width * i), pixels + width * i);
      const __m512i level = _mm512_mask_permutexvar_epi8(_mm512_permutex2var_epi8(given[0], index, given[1]), in_third,
                                                         index, given[2]);
      const __mmask64 upper = _mm512_movepi8_mask(level);
      __m512i found[bytes];
      for (int b = 0; b < bytes; ++b)
        found[b] = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(table[b][0], level, table[b][1]),
                                          _mm512_permutex2var_epi8(table[b][2], level, table[b][3]));
      if constexpr (bytes == 2) {
        store(_mm512_unpacklo_epi8(found[0], found[1]), count, to, past_caches);
        store(_mm512_unpackhi_epi8(found[0], found[1]), count - per_register, to + per_register, past_caches);
      } else {
        const __m512i low[2] = {_mm512_unpacklo_epi8(found[0], found[1]), _mm512_unpackhi_epi8(found[0], found[1])};
        const __m512i high[2] = {_mm512_unpacklo_epi8(found[2], found[3]), _mm512_unpackhi_epi8(found[2], found[3])};
        for (int half = 0; half < 2; ++half) {
          const int64_t at = 2 * half * per_register, next = at + per_register;
          store(_mm512_unpacklo_epi16(low[half], high[half]), count - at, to + at, past_caches);
          store(_mm512_unpackhi_epi16(low[half], high[half]), count - next, to + next, past_caches);
        }
      }
    }
  }

  // Up to `count` values.
  AVX512 static void store(__m512i values, int64_t count, Value* to, bool past_caches) {
    if (past_caches && count >= per_register)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), values);
    else if constexpr (bytes == 2)
      _mm512_mask_storeu_epi16(to, static_cast<__mmask32>(first_bits(count)), values);
    else
      _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(first_bits(count)), values);
  }
#endif
};

}  // namespace deit::cpu
