// The last stage by CUDA blocks: normalise, erase, mix, round to the output's type, in the output's layout.
//
// A thread makes eight pixels at once, stored as 16 bytes, wherever eight pixels lie together in the output. A warp's lie
// in four lines, which is near to squares in the images and in the patches of the output. Levels become values by
// arithmetic: lanes would want different words of a table, and of the same banks. Pixels that are erased are made again
// afterwards, by fours, with their noise.
#pragma once

#include <cstdint>

#include "../arithmetic/mix.h"
#include "../arithmetic/noise.h"
#include "../arithmetic/normalise.h"
#include "../arithmetic/plan.h"
#include "block.cuh"

namespace deit::cuda {

constexpr int32_t lines_of_part = 16;  // output lines of a block at most: 8 blocks an image at 224 pixels
constexpr int32_t band = 4;            // lines of which a warp makes some columns
constexpr int32_t group = 8, quad = 4;  // pixels of a line that a thread makes at once, and of erased ones

// What the last stage reads: `count` staged images, their rows, and how they are mixed, or null.
struct FinishBatch {
  const uint8_t* images;
  int64_t data_bytes;
  const PlanRow* rows;
  const MixRow* mix;
  int64_t count;
  int32_t size;
  Inverses inverses;
};

// What a block shares: the rows of its image and its partner, which is itself where nothing is mixed.
struct FinishShared {
  PlanRow row[2];
  Box erased[2];  // what is seen of the erased pixels
  bool good[2];
};

// Two values as their bits, the first in the lower half, to nearest, ties to even: what element_bits gives, but for
// other bits of a NaN.
template <Type type>
DEVICE uint32_t two_bits(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  if constexpr (type == Type::float16) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  if constexpr (type == Type::bfloat16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
#else
  return uint32_t{element_bits<type>(first)} | uint32_t{element_bits<type>(second)} << 16;
#endif
}

// Eight values to where they lie together in the output: a multiple of 16 bytes.
template <Type type>
DEVICE void store_eight(const float (&value)[group], typename Element<type>::Bits* to) {
  if constexpr (type == Type::float32) {
    store_global({{float_bits(value[0]), float_bits(value[1]), float_bits(value[2]), float_bits(value[3])}}, to);
    store_global({{float_bits(value[4]), float_bits(value[5]), float_bits(value[6]), float_bits(value[7])}}, to + 4);
  } else {
    store_global({{two_bits<type>(value[0], value[1]), two_bits<type>(value[2], value[3]),
                   two_bits<type>(value[4], value[5]), two_bits<type>(value[6], value[7])}},
                 to);
  }
}

// Four values to where they lie together in the output: a multiple of 8 bytes, of 16 for float32.
template <Type type>
DEVICE void store_four(const float (&value)[quad], typename Element<type>::Bits* to) {
  if constexpr (type == Type::float32)
    store_global({{float_bits(value[0]), float_bits(value[1]), float_bits(value[2]), float_bits(value[3])}}, to);
  else
    *reinterpret_cast<Words2*>(to) = {{two_bits<type>(value[0], value[1]), two_bits<type>(value[2], value[3])}};
}

// place_of without an integer division; an image's values are fewer than 2**31. Without patches the image is one.
struct Places {
  uint32_t channel;  // how far the next channel is

  DEVICE Places(int32_t size, const Finish& finish)
      : channel(finish.layout == Layout::channels_last ? 1
                : finish.layout == Layout::nchw        ? size * size
                                                       : finish.patch * finish.patch),
        side(finish.layout == Layout::patches ? finish.patch : size), inverse(reciprocal(static_cast<float>(side))),
        down(side * (3 * size - side)), right(finish.layout == Layout::patches ? (3 * side - 1) * side : 0),
        pixel(finish.layout == Layout::channels_last ? 3 : 1) {}

  DEVICE uint32_t first(int32_t y, int32_t x) const {
    const auto patch_of = [&](int32_t at) { return static_cast<int32_t>((static_cast<float>(at) + 0.5f) * inverse); };
    return static_cast<uint32_t>(pixel * (y * side + x) + down * patch_of(y) + right * patch_of(x));
  }

  int32_t side;
  float inverse;      // as in quotient()
  int32_t down, right;  // values from a patch to those below it and beside it, less what its lines count for
  int32_t pixel;      // how far the next pixel is: 3 where channels come last
};

// The levels of `count` pixels that lie together, which begin at a multiple of them.
template <int count>
struct Levels {
  uint32_t word[3 * count / 4];

  DEVICE explicit Levels(const uint8_t* pixels) {
    if constexpr (count % 8 == 0) {
      const auto* pairs = reinterpret_cast<const Words2*>(pixels);
      for (int i = 0; i < 3 * count / 8; ++i) {
        const Words2 pair = pairs[i];
        word[2 * i] = pair.word[0];
        word[2 * i + 1] = pair.word[1];
      }
    } else {
      for (int i = 0; i < 3 * count / 4; ++i) word[i] = reinterpret_cast<const uint32_t*>(pixels)[i];
    }
  }

  DEVICE float operator[](int i) const { return static_cast<float>(byte_of(word[i / 4], i % 4)); }

  // Those of `other` instead for the pixels [from, to).
  DEVICE void paste(const Levels& other, int32_t from, int32_t to) {
    const auto upper = [](int32_t bytes) {  // of a word's bytes, those that come after so many
      return bytes <= 0 ? 0xFFFFFFFF : bytes >= 4 ? 0 : 0xFFFFFFFF << (8 * bytes);
    };
    for (int i = 0; i < 3 * count / 4; ++i) {
      const uint32_t pasted = upper(3 * from - 4 * i) & ~upper(3 * to - 4 * i);
      word[i] = (word[i] & ~pasted) | (other.word[i] & pasted);
    }
  }
};

// The pixels of `box` among the four of line y from x on, a bit for each.
DEVICE uint32_t inside(const Box& box, int32_t y, int32_t x) {
  if (y < box.top || y >= box.top + box.height) return 0;
  const int32_t from = smaller(larger(box.left - x, 0), quad), to = smaller(larger(box.left + box.width - x, 0), quad);
  return (1u << to) - (1u << from);
}

DEVICE Box intersection(const Box& a, const Box& b) {
  const int32_t top = larger(a.top, b.top), left = larger(a.left, b.left);
  return {top, left, larger(smaller(a.top + a.height, b.top + b.height) - top, 0),
          larger(smaller(a.left + a.width, b.left + b.width) - left, 0)};
}

// The cells of every step-th band of lines from the one of line `top` on, `columns` in each line: down the lines of a band,
// then on to the next column.
struct BandCells {
  uint32_t columns, top, column, down, right, step;

  DEVICE BandCells(int32_t columns_of_line, int32_t top_line, int32_t step_lines) {
    const Cells cell(band * columns_of_line);
    columns = band * columns_of_line;
    step = step_lines;
    top = top_line + step_lines * cell.row;
    down = step_lines * cell.rows_on;
    column = cell.column;
    right = cell.columns_on;
  }

  DEVICE int32_t y() const { return static_cast<int32_t>(top | (column % band)); }  // top is a multiple of a band's lines
  DEVICE int32_t x() const { return static_cast<int32_t>(column / band); }

  DEVICE void next() {
    top += down;
    column += right;
    if (column >= columns) {
      column -= columns;
      top += step;
    }
  }
};

// One of three parameters of a kernel. An index would have them copied into memory.
DEVICE float chosen(const float (&of)[3], int c) { return c == 0 ? of[0] : c == 1 ? of[1] : of[2]; }

// An image, its partner and how they are mixed. Neither's row has to be good: then all of it is NaN in the end.
struct Mixed {
  const Finish& finish;
  const Inverses& inverses;
  const uint8_t *own, *partner;
  MixRow mix;
  int32_t size;

  DEVICE float value_of(float level, int c) const {
    return normalise(level, chosen(finish.mean, c), chosen(inverses.inverse, c), chosen(inverses.rest, c));
  }

  // The levels of `count` pixels of line y from x on, those that CutMix takes from the partner among them.
  template <int count>
  DEVICE Levels<count> levels_at(int32_t y, int32_t x) const {
    const uint32_t place = 3 * static_cast<uint32_t>(y * size + x);
    const Box& box = mix.box;
    int32_t from = 0, to = 0;  // which of them are the partner's
    if (mix.mode == Mode::cutmix && box.top <= y && y < box.top + box.height) {
      from = larger(box.left - x, 0);
      to = smaller(box.left + box.width - x, count);
    }
    Levels<count> levels((to - from == count ? partner : own) + place);
    if (from < to && to - from < count) levels.paste(Levels<count>(partner + place), from, to);
    return levels;
  }

  DEVICE float joined(float own_value, float partner_value, bool pasted) const {
    if (mix.mode == Mode::mixup) return own_value * own_share(mix) + partner_value * partner_share(mix);
    return pasted ? partner_value : own_value;
  }

  // One channel of a pixel.
  DEVICE float pixel_at(const PlanRow (&row)[2], int32_t y, int32_t x, int c) const {
    const int32_t pixel = y * size + x;
    const bool pasted = mix.mode == Mode::cutmix && is_pasted(mix, y, x);
    float value[2] = {};
    for (int side = 0; side < 2; ++side) {
      if (mix.mode != Mode::mixup && side != pasted) continue;
      const uint8_t level = (side ? partner : own)[3 * pixel + c];
      value[side] = is_erased(row[side], y, x)  ? noise_at(row[side], pixel, c)
                    : inverses.exact            ? value_of(static_cast<float>(level), c)
                                                : normalise(level, chosen(finish.mean, c), chosen(finish.std, c));
    }
    return joined(value[0], value[1], pasted);
  }

  // The box of erased pixels of which something is seen, of the image or its partner.
  DEVICE Box erased(const PlanRow& row, int side) const {
    if (row.erase == Erase::none || (side == 1 && mix.mode == Mode::none)) return Box{};
    return side == 1 && mix.mode == Mode::cutmix ? intersection(row.erased, mix.box) : row.erased;
  }
};

// The noise of a quad, of the pixels that have a bit in `wanted`.
DEVICE void fill_with_noise(const PlanRow& row, uint32_t number, uint32_t wanted, float (&value)[3 * quad]) {
  const bool colour = row.erase == Erase::random, black = row.erase == Erase::constant;
  for (uint32_t c = 0; c < 3; ++c) {
    const Words words = noise_words(row, colour ? 0 : number, c);
    const NoisePair left = noise_pair(words.word[0], words.word[1]), right = noise_pair(words.word[2], words.word[3]);
    const float noise[quad] = {left.first, colour ? left.first : left.second, colour ? left.first : right.first,
                               colour ? left.first : right.second};
    for (int i = 0; i < quad; ++i)
      if (wanted >> i & 1) value[3 * i + c] = black ? 0.0f : noise[i];
  }
}

// Where the values of a group come from: an image, in CutMix with pixels of its partner, both images, or both for the
// outputs of both, which mix each other alike.
enum class From { one, both, both_for_both };

// The lines of a block: every so many bands, so that what is erased is shared evenly.
template <Type type>
struct FinishPart {
  using Bits = typename Element<type>::Bits;
  const Mixed& mixed;
  const FinishShared& shared;
  const Places places;
  Bits *const output, *const partner_output;
  const bool both;  // whether the lines of both outputs are stored
  const int32_t size, first, step;  // the first line, and lines from the first of a band to that of the next

  template <From from>
  DEVICE void groups() const {
    places.pixel == 3 ? groups_of<from, true>() : groups_of<from, false>();
  }

  template <From from, bool channels_last>
  DEVICE void groups_of() const {
    const float share = own_share(mixed.mix), rest = partner_share(mixed.mix);
    for (BandCells cell(size / group, first, step); cell.top < static_cast<uint32_t>(size); cell.next()) {
      const int32_t y = cell.y(), x = group * cell.x();
      const uint32_t pixel = y * size + x;
      const Levels<group> own = from == From::one ? mixed.levels_at<group>(y, x) : Levels<group>(mixed.own + 3 * pixel);
      const Levels<group> partner = from == From::one ? own : Levels<group>(mixed.partner + 3 * pixel);
      uint32_t place = places.first(y, x);
#pragma unroll
      for (int piece = 0; piece < 3; ++piece, place += channels_last ? group : places.channel) {
        float value[group], other[group];
        for (int i = 0; i < group; ++i) {
          const int at = channels_last ? group * piece + i : 3 * i + piece;
          value[i] = mixed.value_of(own[at], at % 3);
          if constexpr (from == From::one) continue;
          const float seconds = mixed.value_of(partner[at], at % 3), firsts = value[i];
          value[i] = firsts * share + seconds * rest;
          other[i] = seconds * share + firsts * rest;
        }
        store_eight<type>(value, output + place);
        if constexpr (from == From::both_for_both) store_eight<type>(other, partner_output + place);
      }
    }
  }

  // Again all quads in which something of the image is erased and seen, or else something of its partner.
  template <bool mixup>
  DEVICE void quads(int side) const {
    const Box box = shared.erased[side];
    if (box.width == 0 || box.height == 0) return;
    const int32_t left = box.left / quad, columns = divided_up(box.left + box.width, quad) - left;
    const int32_t top = first + step * divided_up(larger(box.top / band * band - first, 0), step);
    const uint32_t end = box.top + box.height;
    for (BandCells cell(columns, top, step); cell.top < end; cell.next()) {
      const int32_t y = cell.y(), x = quad * (left + cell.x());
      const uint32_t pasted = mixed.mix.mode == Mode::cutmix ? inside(mixed.mix.box, y, x) : 0;
      const uint32_t own = inside(shared.erased[0], y, x) & ~pasted, partner = inside(shared.erased[1], y, x);
      if (side == 0 ? own != 0 : own == 0 && partner != 0) quad_at<mixup>(y, x, own, partner);
    }
  }

  // A bit for each pixel whose noise is seen.
  template <bool mixup>
  DEVICE void quad_at(int32_t y, int32_t x, uint32_t own, uint32_t partner) const {
    const float share = own_share(mixed.mix), rest = partner_share(mixed.mix);
    const uint32_t pixel = y * size + x;
    Levels<quad> levels = mixupped<mixup>(y, x);
    float value[3 * quad], other[3 * quad], part[3 * quad];
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
      if (mixup || side == 0)
        for (int i = 0; i < 3 * quad; ++i) part[i] = mixed.value_of(levels[i], i % 3);
      const uint32_t erased = side == 0 ? own : partner;
      if (erased != 0) fill_with_noise(shared.row[side], pixel / quad, erased, part);
      for (int i = 0; i < 3 * quad; ++i) {
        value[i] = !mixup ? part[i] : side == 0 ? part[i] * share : value[i] + part[i] * rest;
        other[i] = side == 0 ? part[i] * rest : other[i] + part[i] * share;
      }
      if (mixup) levels = Levels<quad>(mixed.partner + 3 * pixel);
    }
    store_quad(value, places.first(y, x), output);
    if (mixup && both) store_quad(other, places.first(y, x), partner_output);
  }

  template <bool mixup>
  DEVICE Levels<quad> mixupped(int32_t y, int32_t x) const {
    if constexpr (mixup) return Levels<quad>(mixed.own + 3 * (y * size + x));
    return mixed.levels_at<quad>(y, x);
  }

  DEVICE void store_quad(const float (&value)[3 * quad], uint32_t place, Bits* to) const {
    const bool last = places.pixel == 3;
    for (int piece = 0; piece < 3; ++piece) {
      float four[quad];
      for (int i = 0; i < quad; ++i) four[i] = last ? value[quad * piece + i] : value[3 * i + piece];
      store_four<type>(four, to + place + piece * (last ? quad : places.channel));
    }
  }

  // One pixel after the other: NaN, or where pixels do not lie together.
  DEVICE void pixels(bool good) const {
    for (BandCells cell(size, first, step); cell.top < static_cast<uint32_t>(size); cell.next()) {
      const int32_t y = cell.y(), x = cell.x();
      if (y >= size) continue;
#pragma unroll 1
      for (int c = 0; c < 3; ++c) {
        const uint32_t place = places.first(y, x) + c * places.channel;
        const float value = good ? mixed.pixel_at(shared.row, y, x, c) : not_a_number();
        output[place] = element_bits<type>(value);
        if (both) partner_output[place] = element_bits<type>(value);  // NaN: good ones are made in groups
      }
    }
  }
};

// Whether two images mix each other alike: then their blocks share the lines of both.
DEVICE bool mix_each_other(const MixRow& mix, int32_t image, const MixRow& partner) {
  return mix.mode == Mode::mixup && partner.mode == Mode::mixup && mix.partner != image && partner.partner == image &&
         mix.lam == partner.lam;
}

// Grid: (images, ceil(size / lines_of_part)). An invalid row, or one whose partner is invalid, gives NaN.
template <Type type>
DEVICE void finish_block(const FinishBatch& batch, const Finish& finish, typename Element<type>::Bits* output,
                         unsigned char* memory) {
  auto& shared = *reinterpret_cast<FinishShared*>(memory);
  const int32_t size = batch.size, image = blockIdx.x;
  const int64_t image_values = 3 * int64_t{size} * size;

  copy_row(batch.rows + image, shared.row[0]);
  MixRow mix{image, Mode::none, 1.0, Box{}};
  bool mixes = true, both = false;
  if (batch.mix) {
    const MixRow given = batch.mix[image];
    mixes = mix_problem(given, batch.count, size) == MixProblem::none;
    if (mixes && given.mode != Mode::none) {
      mix = given;
      const MixRow partner = batch.mix[given.partner];
      both = mix_each_other(given, image, partner) && mix_problem(partner, batch.count, size) == MixProblem::none;
    }
  }
  copy_row(batch.rows + mix.partner, shared.row[1]);
  __syncthreads();

  const Mixed mixed{finish, batch.inverses, batch.images + image * image_values,
                    batch.images + mix.partner * image_values, mix, size};
  if (threadIdx.x == 0) {
    shared.good[0] = mixes && row_problem(shared.row[0], batch.data_bytes, size) == RowProblem::none;
    shared.erased[0] = mixed.erased(shared.row[0], 0);
  }
  if (threadIdx.x == blockDim.x - 1) {
    shared.good[1] = row_problem(shared.row[1], batch.data_bytes, size) == RowProblem::none;
    shared.erased[1] = mixed.erased(shared.row[1], 1);
  }
  const bool grouped = size % group == 0 && (finish.layout != Layout::patches || finish.patch % group == 0) &&
                       reinterpret_cast<uintptr_t>(output) % sizeof(Words4) == 0 && batch.inverses.exact;
  both = both && grouped;
  const int32_t parts = gridDim.y * (1 + both), number = (1 + both) * blockIdx.y + (both && image > mix.partner);
  const FinishPart<type> part{mixed, shared, Places(size, finish), output + image * image_values,
                              output + mix.partner * image_values, both, size, band * number, band * parts};
  if (grouped) {
    if (both) part.template groups<From::both_for_both>();
    else if (mix.mode == Mode::mixup) part.template groups<From::both>();
    else part.template groups<From::one>();
  }
  __syncthreads();  // what is stored a second time, is stored by other threads
  if (!grouped || !shared.good[0] || !shared.good[1]) return part.pixels(shared.good[0] && shared.good[1]);
#pragma unroll 1
  for (int side = 0; side < 2; ++side) mix.mode == Mode::mixup ? part.template quads<true>(side) : part.template quads<false>(side);
}

}  // namespace deit::cuda
