// The last stage on the CPU: normalise, erase, mix, round to the output's type, in the output's layout.
//
// An image that is not mixed goes through one table from level to output bits, then its erased box is overwritten.
// Mixing works on lines of float32, whose shares are multiplied into the table of each image.
#include <algorithm>
#include <cstring>

#include "../arithmetic/noise.h"
#include "look_up.h"
#include "stages.h"

namespace deit::cpu {
namespace {

template <typename Bits>
void look_up_image(const uint8_t* image, int32_t size, const Table<Bits>& table, const Finish& finish, bool past_caches,
                   Bits* output) {
  const int64_t side = size, pixels = side * side, patch = finish.patch, patch_pixels = patch * patch;
  switch (finish.layout) {
    case Layout::nchw:
      return table.look_up(image, pixels, output, output + pixels, output + 2 * pixels, past_caches);
    case Layout::channels_last:
      for (int64_t i = 0; i < pixels; ++i)
        for (int c = 0; c < 3; ++c) output[i * 3 + c] = table[c][image[i * 3 + c]];
      return;
    case Layout::patches:
      for (int64_t top = 0; top < side; top += patch)
        for (int64_t left = 0; left < side; left += patch, output += 3 * patch_pixels)
          for (int64_t y = 0; y < patch; ++y) {
            Bits* line = output + y * patch;
            table.look_up(image + ((top + y) * side + left) * 3, patch, line, line + patch_pixels,
                          line + 2 * patch_pixels, past_caches);
          }
  }
}

// Values of a piece of a line, by channel.
struct Values {
  float channel[3][max_output];
};

// The noise of `count` pixels. In two loops, so that each is one that compilers vectorise; both run over whole vectors,
// since what is left over would take as long as a vector for each counter.
VECTOR_CLONES void noise_run(const PlanRow& row, uint32_t pixel, int32_t count, float* const (&to)[channels]) {
  constexpr int32_t chunk = 64, vector = 16, most = channels * chunk;  // quads, lanes, counters
  uint32_t word[4][most];
  float noise[4 * most], line[channels][4 * chunk];
  int32_t done = 0, skipped = pixel % 4;  // of the first quad
  for (uint32_t quad = pixel / 4; done < count; quad += chunk, skipped = 0) {
    const int32_t length = std::min(4 * chunk - skipped, count - done), quads = (skipped + length + 3) / 4;
    const int32_t counters = (channels * quads + vector - 1) / vector * vector;
    for (int32_t i = 0; i < counters; ++i) {
      const Words words = noise_words(row, quad, static_cast<uint32_t>(i));
      for (int k = 0; k < 4; ++k) word[k][i] = words.word[k];
    }
    for (int32_t i = 0; i < counters; ++i)
      for (int k = 0; k < 4; k += 2) {
        const NoisePair pair = noise_pair(word[k][i], word[k + 1][i]);
        noise[4 * i + k] = pair.first;
        noise[4 * i + k + 1] = pair.second;
      }
    for (int32_t i = 0; i < channels * quads; ++i) std::copy_n(noise + 4 * i, 4, line[i % channels] + i / channels * 4);
    for (int c = 0; c < channels; ++c) std::copy_n(line[c] + skipped, length, to[c] + done);
    done += length;
  }
}

// The values of an erased piece of line y, columns [begin, end), to where `values` has column `origin`.
void erase_run(const PlanRow& row, int32_t y, int32_t begin, int32_t end, int32_t origin, int32_t size,
               Values& values) {
  float* const to[channels] = {values.channel[0] + (begin - origin), values.channel[1] + (begin - origin),
                               values.channel[2] + (begin - origin)};
  if (row.erase == Erase::pixel) return noise_run(row, static_cast<uint32_t>(y * size + begin), end - begin, to);
  for (int c = 0; c < channels; ++c) std::fill_n(to[c], end - begin, noise_at(row, 0, static_cast<uint32_t>(c)));
}

// level -> value * share, through the tables of the image's last ops.
Table<float> scaled_table(const Staged& staged, const LevelValues& values, float share) {
  return Table<float>([&](int c, int level) { return values.value[c][staged.tables->level[c][level]] * share; });
}

// Columns [begin, end) of line y of an image, erased where it is, times `share`.
void value_run(const Staged& staged, const Table<float>& scaled, float share, int32_t y, int32_t begin, int32_t end,
               int32_t size, Values& values) {
  const uint8_t* pixels = staged.image + channels * (int64_t{y} * size + begin);
  scaled.look_up(pixels, end - begin, values.channel[0], values.channel[1], values.channel[2], false);
  const PlanRow& row = *staged.row;
  const Box& box = row.erased;
  if (row.erase == Erase::none || y < box.top || y >= box.top + box.height) return;
  const int32_t first = std::max(begin, box.left), last = std::min(end, box.left + box.width);
  if (first >= last) return;
  erase_run(row, y, first, last, begin, size, values);
  for (auto& channel : values.channel)
    for (int32_t x = first - begin; x < last - begin; ++x) channel[x] *= share;
}

template <Type type>
VECTOR_CLONES void round_run(const float* values, int64_t count, typename Element<type>::Bits* to) {
  if constexpr (type == Type::float32) {
    std::memcpy(to, values, count * sizeof *values);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = element_bits<type>(values[i]);
}

// `count` values of 4 bytes. Only whole lines of the caches are worth writing past them.
void copy_past_caches(const float* from, int64_t count, void* to) {
#ifdef __SSE2__
  constexpr int64_t line = 64, step = sizeof(__m128i);
  const int64_t bytes = count * static_cast<int64_t>(sizeof *from);
  if (reinterpret_cast<uintptr_t>(to) % line == 0 && bytes % line == 0) {
    for (int64_t at = 0; at < bytes; at += step)
      _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<uint8_t*>(to) + at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(reinterpret_cast<const uint8_t*>(from) + at)));
    return;
  }
#endif
  std::memcpy(to, from, count * sizeof *from);
}

// Columns [begin, end) of line y into the output.
template <Type type>
void store_run(const Values& values, int32_t y, int32_t begin, int32_t end, int32_t size, const Finish& finish,
               typename Element<type>::Bits* output, bool past_caches = false) {
  const int32_t whole = finish.layout == Layout::patches ? finish.patch : size;  // values side by side in the output
  for (int32_t x = begin; x < end;) {
    const int32_t stop = std::min(end, (x / whole + 1) * whole);
    const Place place = place_of(y, x, size, finish.layout, finish.patch);
    for (int c = 0; c < 3; ++c) {
      const float* from = values.channel[c] + (x - begin);
      auto* to = output + place.first + c * place.channel;
      if (finish.layout == Layout::channels_last)
        for (int32_t i = 0; i < stop - x; ++i) to[3 * i] = element_bits<type>(from[i]);
      else if (type == Type::float32 && past_caches)
        copy_past_caches(from, stop - x, to);
      else
        round_run<type>(from, stop - x, to);
    }
    x = stop;
  }
}

template <Type type>
void finish_plain(const Staged& own, int32_t size, const LevelValues& values, const Finish& finish, bool past_caches,
                  typename Element<type>::Bits* output) {
  const Table<typename Element<type>::Bits> table(
      [&](int c, int level) { return element_bits<type>(values.value[c][own.tables->level[c][level]]); });
  look_up_image(own.image, size, table, finish, past_caches, output);
  const PlanRow& row = *own.row;
  if (row.erase == Erase::none) return;
  const int32_t left = row.erased.left, right = left + row.erased.width;
  Values noise;
  for (int32_t y = row.erased.top; y < row.erased.top + row.erased.height; ++y) {
    erase_run(row, y, left, right, left, size, noise);
    store_run<type>(noise, y, left, right, size, finish, output);
  }
}

template <Type type>
void finish_mixup(const Staged& own, const Staged& partner, const MixRow& mix, int32_t size, const LevelValues& values,
                  const Finish& finish, bool past_caches, typename Element<type>::Bits* output) {
  const float share = own_share(mix), rest = partner_share(mix);
  const Table<float> own_table = scaled_table(own, values, share), partner_table = scaled_table(partner, values, rest);
  Values mixed, other;
  for (int32_t y = 0; y < size; ++y) {
    value_run(own, own_table, share, y, 0, size, size, mixed);
    value_run(partner, partner_table, rest, y, 0, size, size, other);
    for (int c = 0; c < 3; ++c)
      for (int32_t x = 0; x < size; ++x) mixed.channel[c][x] += other.channel[c][x];
    store_run<type>(mixed, y, 0, size, size, finish, output, past_caches);
  }
}

template <Type type>
void paste(const Staged& partner, const MixRow& mix, int32_t size, const LevelValues& values, const Finish& finish,
           typename Element<type>::Bits* output) {
  const Table<float> table = scaled_table(partner, values, 1.0f);
  Values line;
  const int32_t left = mix.box.left, right = left + mix.box.width;
  for (int32_t y = mix.box.top; y < mix.box.top + mix.box.height; ++y) {
    value_run(partner, table, 1.0f, y, left, right, size, line);
    store_run<type>(line, y, left, right, size, finish, output);
  }
}

template <Type type>
void finish_as(const Staged& own, const Staged* partner, const MixRow* mix, int32_t size, const LevelValues& values,
               const Finish& finish, bool past_caches, void* output) {
  auto* bits = static_cast<typename Element<type>::Bits*>(output);
  if (mix && mix->mode == Mode::mixup)
    return finish_mixup<type>(own, *partner, *mix, size, values, finish, past_caches, bits);
  finish_plain<type>(own, size, values, finish, past_caches, bits);
  if (mix && mix->mode == Mode::cutmix) paste<type>(*partner, *mix, size, values, finish, bits);
}

}  // namespace

LevelValues level_values(const Finish& finish) {
  LevelValues values;
  for (int c = 0; c < 3; ++c)
    for (int level = 0; level < 256; ++level)
      values.value[c][level] = normalise(static_cast<uint8_t>(level), finish.mean[c], finish.std[c]);
  return values;
}

void finish_image(const Staged& own, const Staged* partner, const MixRow* mix, int32_t size, const LevelValues& values,
                  const Finish& finish, bool past_caches, void* output) {
  switch (finish.type) {
    case Type::float32: return finish_as<Type::float32>(own, partner, mix, size, values, finish, past_caches, output);
    case Type::float16: return finish_as<Type::float16>(own, partner, mix, size, values, finish, past_caches, output);
    case Type::bfloat16: return finish_as<Type::bfloat16>(own, partner, mix, size, values, finish, past_caches, output);
  }
}

void finish_past_caches() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

}  // namespace deit::cpu
