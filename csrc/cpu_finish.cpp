// The last stage on the CPU: normalise, erase, mix, round to the output's type, in the output's layout.
//
// An image that is not mixed goes through one table from level to output bits, then its erased box is overwritten.
// Mixing works on lines of float32, whose shares are multiplied into the table of each image.
#include <algorithm>
#include <cstring>

#include "augment/noise.h"
#include "cpu_stages.h"

namespace deit::cpu {
namespace {

// A run of pixels into three planes; levels: [3][256].
template <typename Bits>
void look_up_run(const uint8_t* pixels, int64_t count, const Bits (*levels)[256], Bits* red, Bits* green, Bits* blue) {
  for (int64_t i = 0; i < count; ++i, pixels += 3) {
    red[i] = levels[0][pixels[0]];
    green[i] = levels[1][pixels[1]];
    blue[i] = levels[2][pixels[2]];
  }
}

template <typename Bits>
void look_up_image(const uint8_t* image, int32_t size, const Bits (*levels)[256], const Finish& finish, Bits* output) {
  const int64_t side = size, pixels = side * side, patch = finish.patch, patch_pixels = patch * patch;
  switch (finish.layout) {
    case Layout::nchw:
      return look_up_run(image, pixels, levels, output, output + pixels, output + 2 * pixels);
    case Layout::channels_last:
      for (int64_t i = 0; i < pixels; ++i)
        for (int c = 0; c < 3; ++c) output[i * 3 + c] = levels[c][image[i * 3 + c]];
      return;
    case Layout::patches:
      for (int64_t top = 0; top < side; top += patch)
        for (int64_t left = 0; left < side; left += patch, output += 3 * patch_pixels)
          for (int64_t y = 0; y < patch; ++y) {
            Bits* line = output + y * patch;
            look_up_run(image + ((top + y) * side + left) * 3, patch, levels, line, line + patch_pixels,
                        line + 2 * patch_pixels);
          }
  }
}

// Values of a piece of a line, by channel.
struct Values {
  float channel[3][max_output];
};

// The noise of `count` pixels. In two loops, so that each is one that compilers vectorise.
VECTOR_CLONES void noise_run(const PlanRow& row, uint32_t pixel, int32_t count, float* red, float* green,
                             float* blue) {
  constexpr int32_t chunk = 64;
  uint32_t word[4][chunk];
  const uint32_t step = row.erase == Erase::pixel;
  for (int32_t begin = 0; begin < count; begin += chunk) {
    const int32_t length = std::min(chunk, count - begin);
    for (int32_t i = 0; i < length; ++i) {
      const Words words = philox(row.seed, Stream::noise, row.epoch, row.sample, row.copy,
                                 step * (pixel + static_cast<uint32_t>(begin + i)));
      for (int k = 0; k < 4; ++k) word[k][i] = words.word[k];
    }
    for (int32_t i = 0; i < length; ++i) {
      float rgb[3];
      noise_of_words({{word[0][i], word[1][i], word[2][i], word[3][i]}}, rgb);
      red[begin + i] = rgb[0];
      green[begin + i] = rgb[1];
      blue[begin + i] = rgb[2];
    }
  }
}

// The values of an erased piece of line y, columns [begin, end), to where `values` has column `origin`.
void erase_run(const PlanRow& row, int32_t y, int32_t begin, int32_t end, int32_t origin, int32_t size,
               Values& values) {
  float* at[3];
  for (int c = 0; c < 3; ++c) at[c] = values.channel[c] + (begin - origin);
  if (row.erase == Erase::constant)
    for (float* channel : at) std::fill(channel, channel + (end - begin), 0.0f);
  else
    noise_run(row, static_cast<uint32_t>(y * size + begin), end - begin, at[0], at[1], at[2]);
}

using Scaled = float[3][256];

// level -> value * share, through the tables of the image's last ops.
void scale_levels(const Staged& staged, const LevelValues& values, float share, Scaled scaled) {
  for (int c = 0; c < 3; ++c)
    for (int level = 0; level < 256; ++level)
      scaled[c][level] = values.value[c][staged.tables->level[c][level]] * share;
}

// Columns [begin, end) of line y of an image, erased where it is, times `share`.
void value_run(const Staged& staged, const Scaled scaled, float share, int32_t y, int32_t begin, int32_t end,
               int32_t size, Values& values) {
  const uint8_t* pixels = staged.image + channels * (int64_t{y} * size + begin);
  look_up_run(pixels, end - begin, scaled, values.channel[0], values.channel[1], values.channel[2]);
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
  for (int64_t i = 0; i < count; ++i) to[i] = element_bits<type>(values[i]);
}

// Columns [begin, end) of line y into the output.
template <Type type>
void store_run(const Values& values, int32_t y, int32_t begin, int32_t end, int32_t size, const Finish& finish,
               typename Element<type>::Bits* output) {
  const int32_t whole = finish.layout == Layout::patches ? finish.patch : size;  // values side by side in the output
  for (int32_t x = begin; x < end;) {
    const int32_t stop = std::min(end, (x / whole + 1) * whole);
    const Place place = place_of(y, x, size, finish.layout, finish.patch);
    for (int c = 0; c < 3; ++c) {
      const float* from = values.channel[c] + (x - begin);
      auto* to = output + place.first + c * place.channel;
      if (finish.layout != Layout::channels_last)
        round_run<type>(from, stop - x, to);
      else
        for (int32_t i = 0; i < stop - x; ++i) to[3 * i] = element_bits<type>(from[i]);
    }
    x = stop;
  }
}

template <Type type>
void finish_plain(const Staged& own, int32_t size, const LevelValues& values, const Finish& finish,
                  typename Element<type>::Bits* output) {
  typename Element<type>::Bits levels[3][256];
  for (int c = 0; c < 3; ++c)
    for (int level = 0; level < 256; ++level)
      levels[c][level] = element_bits<type>(values.value[c][own.tables->level[c][level]]);
  look_up_image(own.image, size, levels, finish, output);
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
                  const Finish& finish, typename Element<type>::Bits* output) {
  const float share = own_share(mix), rest = partner_share(mix);
  Scaled own_levels, partner_levels;
  scale_levels(own, values, share, own_levels);
  scale_levels(partner, values, rest, partner_levels);
  Values mixed, other;
  for (int32_t y = 0; y < size; ++y) {
    value_run(own, own_levels, share, y, 0, size, size, mixed);
    value_run(partner, partner_levels, rest, y, 0, size, size, other);
    for (int c = 0; c < 3; ++c)
      for (int32_t x = 0; x < size; ++x) mixed.channel[c][x] += other.channel[c][x];
    store_run<type>(mixed, y, 0, size, size, finish, output);
  }
}

template <Type type>
void paste(const Staged& partner, const MixRow& mix, int32_t size, const LevelValues& values, const Finish& finish,
           typename Element<type>::Bits* output) {
  Scaled levels;
  scale_levels(partner, values, 1.0f, levels);
  Values line;
  const int32_t left = mix.box.left, right = left + mix.box.width;
  for (int32_t y = mix.box.top; y < mix.box.top + mix.box.height; ++y) {
    value_run(partner, levels, 1.0f, y, left, right, size, line);
    store_run<type>(line, y, left, right, size, finish, output);
  }
}

template <Type type>
void finish_as(const Staged& own, const Staged* partner, const MixRow* mix, int32_t size, const LevelValues& values,
               const Finish& finish, void* output) {
  auto* bits = static_cast<typename Element<type>::Bits*>(output);
  if (mix && mix->mode == Mode::mixup) return finish_mixup<type>(own, *partner, *mix, size, values, finish, bits);
  finish_plain<type>(own, size, values, finish, bits);
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
                  const Finish& finish, void* output) {
  switch (finish.type) {
    case Type::float32: return finish_as<Type::float32>(own, partner, mix, size, values, finish, output);
    case Type::float16: return finish_as<Type::float16>(own, partner, mix, size, values, finish, output);
    case Type::bfloat16: return finish_as<Type::bfloat16>(own, partner, mix, size, values, finish, output);
  }
}

}  // namespace deit::cpu
