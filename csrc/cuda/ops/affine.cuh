// The affine ops by CUDA blocks: in integers, and the few pixels that these leave open in double.
#pragma once

#include <cstdint>

#include "affine_exact.cuh"
#include "affine_fixed.cuh"

namespace deit::cuda {

// What a block shares of an affine op: the fixed matrix, and how many of its pixels are not certain. Where these are more
// than the list takes, a block marks the image, which is then made in double.
struct AffineShared {
  static constexpr int32_t capacity = 6144;
  FixedAffine fixed;
  int32_t listed;
};

// An affine op on one image.
struct AffineOp {
  const FixedAffine& fixed;
  const Groups& source;
  const OpCall& call;
  uint8_t* image;
  int32_t* listed;
  int32_t* list;
  uint32_t* mark;
};

DEVICE void store_pixel(uint8_t* to, uint32_t pixel) {
  for (int c = 0; c < 3; ++c) to[c] = static_cast<uint8_t>(level_of(pixel, c));
}

// For a pixel that is not certain.
DEVICE void leave_open(const AffineOp& op, int32_t y, int32_t x) {
  const int32_t place = atomicAdd(op.listed, 1);
  if (place < AffineShared::capacity)
    op.list[place] = y * op.source.width + x;
  else
    atomicAdd(op.mark, 1u);
}

// Four neighbouring pixels of a line.
struct FourPixels {
  Planes levels;
  uint32_t open = 0;  // bit 7 of byte k: whether pixel k is not certain

  // sum[k]: of pixel k in units of 2**-line_bits levels, to which `error` has been added; byte k of `difference` is 0
  // where all its taps are equal.
  DEVICE void add(int channel, const int32_t* sum, int32_t error, uint32_t difference) {
    int32_t level[4];
    uint32_t near[4];  // negative where a whole level is too near
    for (int k = 0; k < 4; ++k) {
      level[k] = sum[k] >> line_bits;
      near[k] = (sum[k] & ((1 << line_bits) - 1)) - 2 * error;
    }
    levels.channel[channel] = four_levels(level[0], level[1], level[2], level[3]);
    open |= permuted(permuted(near[0], near[1], 0x0073), permuted(near[2], near[3], 0x0073), 0x5410) &
            nonzero_bytes(difference);
  }

  // inside: the bytes of pixels that have not the fill colour. Of byte k of `flags` bit 7 says whether pixel k is not
  // certain to have it or not, bit 6 that it is a tap.
  DEVICE void store(const AffineOp& op, int32_t y, int32_t group, uint32_t inside, uint32_t flags) {
    if (inside != 0xFFFFFFFF)
      for (int c = 0; c < 3; ++c)
        levels.channel[c] = (levels.channel[c] & inside) | (op.call.fill[c] * 0x01010101u & ~inside);
    store_planes(levels, reinterpret_cast<uint32_t*>(op.image) + 3 * (y * op.source.columns() + group));
    open = ((open & inside & ~(flags << 1)) | flags) & 0x80808080;
    if (open != 0)
#pragma unroll 1
      for (int k = 0; k < 4; ++k, open >>= 8)
        if (open & 128) leave_open(op, y, 4 * group + k);
  }
};

// Taps in the pixel's line.
DEVICE void line_pixels(const AffineOp& op) {
  const FixedAxis axis = op.fixed.x;
  const int32_t height = op.source.height, width = op.source.width, error = op.fixed.line_error;
  const auto filter = static_cast<Filter>(op.call.filter);
  for (Cells cell(op.source.columns(), Team::of_image()); cell.row < height; cell.next()) {
    const int64_t at = axis.at(4 * cell.column, cell.row);
    const uint32_t fraction = fraction_of(at);
    const int32_t column = whole(at) - 1, pixel = nearest(at);  // of the first pixel's first tap, and of its own
    uint32_t inside = 0;
    FourPixels pixels{};
    if (-3 <= pixel && pixel < width) {
      inside = 0xFFFFFFFF;
      if (pixel < 0) inside <<= -8 * pixel;
      if (pixel + 3 >= width) inside >>= 8 * (pixel + 4 - width);
      const LineWeights weights(TapWeights(filter, fraction));
      const Words4* from = op.source.near(cell.row, column >> 2);
      const Words4 group[3] = {from[0], from[1], from[2]};
      const uint32_t selector = 0x3210u + (column & 3) * 0x1111u;
      for (int c = 0; c < 3; ++c) {
        const uint32_t low = permuted(group[0].word[c], group[1].word[c], selector);
        const uint32_t high = permuted(group[1].word[c], group[2].word[c], selector);
        // Of pixel i all taps; of every pixel tap i.
        const uint32_t taps[4] = {low, permuted(low, high, 0x4321), permuted(low, high, 0x5432),
                                  permuted(low, high, 0x6543)};
        int32_t sum[4];
        for (int k = 0; k < 4; ++k) sum[k] = weights.sum(taps[k], error);
        uint32_t difference = taps[1] ^ taps[2];
        if (filter == Filter::bicubic) difference |= (taps[0] ^ taps[1]) | (taps[2] ^ taps[3]);
        pixels.add(c, sum, error, difference);
      }
    }
    pixels.store(op, cell.row, cell.column, inside, axis.flags_of(fraction) * 0x01010101u);
  }
}

// Four columns whose taps lie in them: where these begin, and their weights.
struct FourColumns {
  LineWeights weights[4];
  int32_t first;   // in line 0: that of the first tap of all
  uint32_t later;  // bytes of the columns whose taps begin a line after it
  uint32_t flags;  // of FourPixels::store

  DEVICE FourColumns(const FixedAxis& axis, Filter filter, int32_t column)
      : weights{of(axis, filter, column), of(axis, filter, column + 1), of(axis, filter, column + 2),
                of(axis, filter, column + 3)},
        first(INT32_MAX), later(0), flags(0) {
    int32_t tap[4];
    for (int k = 0; k < 4; ++k) {
      const int64_t at = axis.at(column + k, 0);
      tap[k] = whole(at) - 1;
      first = smaller(first, tap[k]);
      flags |= axis.flags_of(fraction_of(at)) << 8 * k;
    }
    for (int k = 0; k < 4; ++k)
      if (tap[k] != first) later |= 255u << 8 * k;
  }

  DEVICE static LineWeights of(const FixedAxis& axis, Filter filter, int32_t column) {
    return LineWeights(TapWeights(filter, fraction_of(axis.at(column, 0))));
  }
};

// Taps in the pixel's column: a thread makes the same four columns of several lines. A warp makes four lines of 32
// pixels: sheared, they are read from fewer lines than one line is.
DEVICE void column_pixels(const AffineOp& op) {
  const int32_t height = op.source.height, columns = op.source.columns(), stride = op.source.stride();
  const int32_t error = op.fixed.line_error;
  const auto filter = static_cast<Filter>(op.call.filter);
  const Team team = Team::of_image();
  const int32_t across = team.size < 32 ? 1 : 8, down = team.size < 32 ? 1 : 4, lanes = across * down;
  const int32_t warps = team.size / lanes, warp = team.number / lanes, lane = team.number % lanes;
  const int32_t tiles = divided_up(columns, across), abreast = smaller(tiles, warps);
  const int32_t below = quotient(warp, abreast), rows_on = down * quotient(warps, abreast);
  if (down * below >= rows_on) return;
  for (int32_t tile = warp - below * abreast; tile < tiles; tile += abreast) {
    const int32_t group = across * tile + lane % across;
    if (group >= columns) continue;
    const FourColumns four(op.fixed.y, filter, 4 * group);
    for (int32_t row = down * below + lane / across; row < height; row += rows_on) {
      uint32_t inside = 0xFFFFFFFF;
      if (row + four.first + 1 < 0 || row + four.first + 3 >= height) {
        inside = 0;
        for (int k = 0; k < 4; ++k)
          if (is_below(nearest(op.fixed.y.at(4 * group + k, row)), height)) inside |= 255u << 8 * k;
      }
      FourPixels pixels{};
      if (inside != 0) {
        const Words4* from = op.source.near(row + four.first, group);
        Words4 line[5];
        for (int i = 0; i < 5; ++i) line[i] = from[i * stride];
        for (int c = 0; c < 3; ++c) {
          uint32_t word[4];  // the taps of all columns
          for (int i = 0; i < 4; ++i) word[i] = (line[i].word[c] & ~four.later) | (line[i + 1].word[c] & four.later);
          const uint32_t upper01 = permuted(word[0], word[1], 0x5140), upper23 = permuted(word[0], word[1], 0x7362);
          const uint32_t lower01 = permuted(word[2], word[3], 0x5140), lower23 = permuted(word[2], word[3], 0x7362);
          const uint32_t taps[4] = {permuted(upper01, lower01, 0x5410), permuted(upper01, lower01, 0x7632),
                                    permuted(upper23, lower23, 0x5410), permuted(upper23, lower23, 0x7632)};
          int32_t sum[4];
          for (int k = 0; k < 4; ++k) sum[k] = four.weights[k].sum(taps[k], error);
          uint32_t difference = word[1] ^ word[2];
          if (filter == Filter::bicubic) difference |= (word[0] ^ word[1]) | (word[2] ^ word[3]);
          pixels.add(c, sum, error, difference);
        }
      }
      pixels.store(op, row, group, inside, four.flags);
    }
  }
}

// Taps in any direction. A warp makes four lines of eight pixels: turned, they are read from fewer lines than 32 pixels
// of a line.
DEVICE void plane_pixels(const AffineOp& op) {
  const int32_t height = op.source.height, width = op.source.width;
  const Team team = Team::of_image();
  const bool tiled = width % 8 == 0 && team.size % 32 == 0;
  const int32_t across = tiled ? 8 : 1, down = tiled ? 4 : 1, lanes = across * down, lane = team.number % lanes;
  const FixedAffine fixed = op.fixed;
  const Groups source = op.source;
  const auto filter = static_cast<Filter>(op.call.filter);
  const uint32_t fill = fill_of(op.call);
  for (Cells cell(width / across, {team.number / lanes, team.size / lanes}); down * cell.row < height; cell.next()) {
    const int32_t row = down * cell.row + lane / across, column = across * cell.column + lane % across;
    if (row >= height) continue;
    const FixedPixel pixel = fixed_pixel(fixed, source, filter, fill, row, column);
    if (pixel.certain)
      store_pixel(op.image + 3 * (row * width + column), pixel.pixel);
    else
      leave_open(op, row, column);
  }
}

// list: `capacity` words of shared memory. mark: a word of the image's blocks that is 0 behind their last barrier.
DEVICE void affine_pixels(const Groups& source, const OpCall& call, AffineShared& shared, int32_t* list, uint32_t* mark,
                          uint8_t* image) {
  const int32_t height = source.height, width = source.width;
  const auto each = [&](const auto& make) {
    for (Cells cell(width, Team::of_image()); cell.row < height; cell.next())
      make(cell.row, cell.column, image + 3 * (int64_t{cell.row} * width + cell.column));
  };
  if (call.fast) {
    each([&](int32_t y, int32_t x, uint8_t* rgb) { real_pixel<float>(source, call, y, x, rgb); });
    return;
  }
  if (own_number() == 0) {
    shared.fixed = fixed_affine(call.matrix, static_cast<Filter>(call.filter), height, width);
    shared.listed = 0;
  }
  __syncthreads();
  if (!shared.fixed.usable) {
    each([&](int32_t y, int32_t x, uint8_t* rgb) { exact_pixel(source, &call, y, x, rgb); });
    return;
  }
  const AffineOp op{shared.fixed, source, call, image, &shared.listed, list, mark};
  if (width % 4 != 0 || shared.fixed.direction == Direction::any)
    plane_pixels(op);
  else if (shared.fixed.direction == Direction::line)
    line_pixels(op);
  else
    column_pixels(op);
  __syncthreads();
  const int32_t listed = shared.listed < AffineShared::capacity ? shared.listed : AffineShared::capacity;
  for (int32_t i = threadIdx.x; i < listed; i += blockDim.x)
    exact_pixel(source, &call, list[i] / width, list[i] % width, image + 3 * int64_t{list[i]});
}

// Behind a barrier, what affine_pixels left over.
DEVICE void affine_rest(const Groups& source, const OpCall& call, uint32_t* mark, uint8_t* image) {
  if (*mark == 0) return;
  const int32_t width = source.width;
  const Team team = Team::of_image();
  for (Cells cell(width, team); cell.row < source.height; cell.next())
    exact_pixel(source, &call, cell.row, cell.column, image + 3 * (int64_t{cell.row} * width + cell.column));
  Team::sync();  // no small image fills a list
  if (team.number == 0) *mark = 0;
}

}  // namespace deit::cuda
