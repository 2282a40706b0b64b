// An image as groups of four pixels of a line, channel by channel, with its edges repeated: where four taps of a channel
// lie in two words at most, and no tap has to be clipped.
#pragma once

#include <cstdint>

#include "../../arithmetic/affine.h"
#include "../block.cuh"
#include "../bytes.cuh"

namespace deit::cuda {

// In scratch memory: two lines of edges above and below, and a group of them at either end of a line.
struct Groups {
  static constexpr int32_t margin = 2;
  uint32_t* words;
  int32_t height, width;

  DEVICE int32_t columns() const { return divided_up(width, 4); }
  DEVICE int32_t stride() const { return columns() + 2; }
  DEVICE Words4* at(int32_t row, int32_t group) const {
    return reinterpret_cast<Words4*>(words) + (int64_t{row} + margin) * stride() + 1 + group;
  }

  // The same as `at`, of at most 2**28 pixels.
  DEVICE const Words4* near(int32_t row, int32_t group) const {
    return reinterpret_cast<const Words4*>(words) + ((row + margin) * stride() + 1 + group);
  }

  // From four pixels of a line on, the first of them in column -4 to width.
  DEVICE Planes taps(int32_t row, int32_t column) const {
    const Words4* from = at(row, column >> 2);
    const Words4 low = from[0], high = from[1];
    const uint32_t selector = 0x3210u + (column & 3) * 0x1111u;
    return {{permuted(low.word[0], high.word[0], selector), permuted(low.word[1], high.word[1], selector),
             permuted(low.word[2], high.word[2], selector)}};
  }

  DEVICE void fill(const uint8_t* image) const {
    const Team team = Team::of_image();
    const int32_t last = columns() - 1;
    auto* to = reinterpret_cast<Words4*>(words) + team.number;
    for (Cells cell(stride(), team); cell.row < height + 2 * margin; cell.next(), to += team.size) {
      const int32_t row = larger(0, smaller(cell.row - margin, height - 1)), group = cell.column - 1;
      Planes planes{};
      if (width % 4 == 0) {
        const int32_t inside = larger(0, smaller(group, last));
        const auto* from = reinterpret_cast<const uint32_t*>(image) + 3 * uint64_t{uint32_t(row * (last + 1) + inside)};
        planes = planes_of(from[0], from[1], from[2]);
        if (group != inside)
          for (uint32_t& word : planes.channel) word = permuted(word, 0, group < 0 ? 0x0000 : 0x3333);
      } else {
        for (int32_t k = 0; k < 4; ++k) {
          const uint8_t* from = image + 3 * (int64_t{row} * width + clipped(4 * group + k, width));
          for (int c = 0; c < 3; ++c) planes.channel[c] |= uint32_t{from[c]} << 8 * k;
        }
      }
      *to = {{planes.channel[0], planes.channel[1], planes.channel[2], 0}};
    }
  }
};

// The 12 bytes of four pixels.
DEVICE void store_planes(const Planes& planes, uint32_t* to) {
  const auto [red, green, blue] = planes.channel;
  const uint32_t first = permuted(red, green, 0x5140), second = permuted(red, green, 0x7362);
  to[0] = permuted(first, blue, 0x2410);
  to[1] = permuted(permuted(first, blue, 0x0053), second, 0x5410);
  to[2] = permuted(second, blue, 0x7326);
}

}  // namespace deit::cuda
