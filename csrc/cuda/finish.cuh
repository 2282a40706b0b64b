// The last stage by CUDA blocks: normalise, erase, mix, round to the output's type, in the output's layout.
//
// A thread makes eight pixels at once, stored as 16 bytes, wherever eight pixels lie together in the output. Levels become
// values by arithmetic: lanes would want different words of a table, of the same banks. A warp's pixels lie in four
// lines, near to squares in the images and in the output's patches. Two images that mix each other are made together, so
// that each is normalised once. Pixels that are erased are made again afterwards, by fours, with their noise.
#pragma once

#include <cstdint>

#include "../arithmetic/mix.h"
#include "../arithmetic/normalise.h"
#include "../arithmetic/plan.h"
#include "block.cuh"
#include "finish/mixed.cuh"
#include "finish/places.cuh"

namespace deit::cuda {

constexpr int32_t lines_of_part = 16;  // output lines of a block at most: 14 blocks an image at 224 pixels

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
      const Levels<group> own = mixed.template levels_at<group, from == From::one>(y, x);
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

  // `own` and `partner` have a bit for each pixel whose noise is seen.
  template <bool mixup>
  DEVICE void quad_at(int32_t y, int32_t x, uint32_t own, uint32_t partner) const {
    const uint32_t pixel = y * size + x, place = places.first(y, x);
    Levels<quad> levels = mixed.template levels_at<quad, !mixup>(y, x);
    float value[3 * quad] = {}, firsts[3 * quad] = {};
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
      if (mixup || side == 0)
        for (int i = 0; i < 3 * quad; ++i) {
          firsts[i] = value[i];
          value[i] = mixed.value_of(levels[i], i % 3);
        }
      const uint32_t erased = side == 0 ? own : partner;
      if (erased != 0) fill_with_noise(shared.row[side], pixel / quad, erased, value);
      if (mixup) levels = Levels<quad>(mixed.partner + 3 * pixel);
    }
    if constexpr (mixup) {
      const float share = own_share(mixed.mix), rest = partner_share(mixed.mix);
      float joined[3 * quad];
      for (int i = 0; i < 3 * quad; ++i) joined[i] = firsts[i] * share + value[i] * rest;
      store_quad(joined, place, output);
      if (!both) return;
      for (int i = 0; i < 3 * quad; ++i) value[i] = value[i] * share + firsts[i] * rest;
    }
    store_quad(value, place, mixup ? partner_output : output);
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

// Whether two images mix each other alike: then their blocks share the lines of both. Their boxes are compared too, so
// that both mix rows are good or neither is.
DEVICE bool mix_each_other(const MixRow& mix, int32_t image, const MixRow& partner) {
  const Box &own = mix.box, &other = partner.box;
  const int32_t differ = (own.top ^ other.top) | (own.left ^ other.left) | (own.height ^ other.height) |
                         (own.width ^ other.width) | (partner.partner ^ image);
  return mix.mode == Mode::mixup && partner.mode == Mode::mixup && mix.partner != image && mix.lam == partner.lam &&
         differ == 0;
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
      both = mix_each_other(given, image, batch.mix[given.partner]);
    }
  }
  copy_row(batch.rows + mix.partner, shared.row[1]);
  __syncthreads();

  const Mixed mixed{finish, batch.inverses, batch.images + image * image_values,
                    batch.images + mix.partner * image_values, mix, size};
  if (own_number() == 0) {
    shared.good[0] = mixes && row_problem(shared.row[0], batch.data_bytes, size) == RowProblem::none;
    if (shared.good[0]) shared.erased[0] = mixed.erased(shared.row[0], 0);
  }
  if (own_number() == static_cast<int32_t>(blockDim.x) - 1) {  // in another warp, at the same time
    shared.good[1] = row_problem(shared.row[1], batch.data_bytes, size) == RowProblem::none;
    if (shared.good[1]) shared.erased[1] = mixed.erased(shared.row[1], 1);
  }
  const bool grouped = size % group == 0 && (finish.layout != Layout::patches || finish.patch % group == 0) &&
                       reinterpret_cast<uintptr_t>(output) % sizeof(Words4) == 0 && batch.inverses.exact;
  both = both && grouped;
  const int32_t parts = gridDim.y * (1 + both), number = (1 + both) * blockIdx.y + (both && image > mix.partner);
  const FinishPart<type> part{mixed, shared, Places(size, finish), output + image * image_values,
                              output + mix.partner * image_values, both, size, band * number, band * parts};
  if (grouped && both)
    part.template groups<From::both_for_both>();
  else if (grouped && mix.mode == Mode::mixup)
    part.template groups<From::both>();
  else if (grouped)
    part.template groups<From::one>();
  // What the two threads above found; and what is stored a second time is stored by other threads.
  __syncthreads();
  const bool good = shared.good[0] && shared.good[1];
  if (!grouped || !good) return part.pixels(good);
#pragma unroll 1
  for (int side = 0; side < 2; ++side)
    mix.mode == Mode::mixup ? part.template quads<true>(side) : part.template quads<false>(side);
}

}  // namespace deit::cuda
