// Gaussian blur on the CPU: of each line its three passes at once, then three passes over the image for the columns. A
// pass adds whole runs of bytes, so it is the same code along both axes.
#include <cstring>

#include "../arithmetic/affine.h"
#include "../arithmetic/blur.h"
#include "stages.h"

namespace deit::cpu {
namespace {

// to[i] from the bytes i of 2 radius + 3 runs.
template <int fixed_radius>
INTO_CLONE void add_runs(const uint8_t* const* runs, const BoxBlur& box, int64_t count, uint8_t* __restrict to) {
  const int32_t last = 2 * fixed_radius + 2;
  const uint8_t* run[last + 1];
  for (int32_t k = 0; k <= last; ++k) run[k] = runs[k];
  for (int64_t i = 0; i < count; ++i) {
    uint32_t inside = 0;
    for (int32_t k = 1; k < last; ++k) inside += run[k][i];
    to[i] = blurred(box, inside, uint32_t{run[0][i]} + run[last][i]);
  }
}

INTO_CLONE void add_many_runs(const uint8_t* const* runs, const BoxBlur& box, int64_t count, uint8_t* __restrict to) {
  constexpr int64_t part = 1024;
  uint32_t inside[part];
  const int32_t last = 2 * box.radius + 2;
  for (int64_t begin = 0; begin < count; begin += part) {
    const int64_t end = count - begin < part ? count - begin : part;
    std::memset(inside, 0, sizeof inside);
    for (int32_t k = 1; k < last; ++k)
      for (int64_t i = 0; i < end; ++i) inside[i] += runs[k][begin + i];
    for (int64_t i = 0; i < end; ++i)
      to[begin + i] = blurred(box, inside[i], uint32_t{runs[0][begin + i]} + runs[last][begin + i]);
  }
}

VECTOR_CLONES void box_pass(const uint8_t* const* runs, const BoxBlur& box, int64_t count, uint8_t* to) {
  if (box.radius == 0)
    add_runs<0>(runs, box, count, to);
  else if (box.radius == 1)
    add_runs<1>(runs, box, count, to);
  else
    add_many_runs(runs, box, count, to);
}

void repeat_edges(uint8_t* line, int64_t bytes, int32_t pixels) {
  for (int64_t i = 1; i <= pixels; ++i) {
    std::memcpy(line - channels * i, line, channels);
    std::memcpy(line + bytes + channels * (i - 1), line + bytes - channels, channels);
  }
}

}  // namespace

void run_blur(uint8_t* image, int32_t height, int32_t width, const OpCall& call) {
  thread_local std::vector<uint8_t> copy, memory;
  const BoxBlur box = box_blur(call.arg);
  const int32_t reach = box.radius + 1;
  const int64_t bytes = channels * width, margin = channels * reach;
  uint8_t* blurred_lines = at_least(copy, height * bytes);
  uint8_t* line[2];
  line[0] = at_least(memory, 2 * (bytes + 2 * margin)) + margin;
  line[1] = line[0] + bytes + 2 * margin;
  std::vector<const uint8_t*> runs(2 * reach + 1);
  for (int64_t y = 0; y < height; ++y) {
    std::memcpy(line[0], image + y * bytes, bytes);
    for (int pass = 0; pass < blur_passes; ++pass) {
      uint8_t* from = line[pass % 2];
      repeat_edges(from, bytes, reach);
      for (int32_t k = -reach; k <= reach; ++k) runs[k + reach] = from + channels * k;
      box_pass(runs.data(), box, bytes, pass + 1 < blur_passes ? line[(pass + 1) % 2] : blurred_lines + y * bytes);
    }
  }
  uint8_t* images[2] = {blurred_lines, image};
  for (int pass = 0; pass < blur_passes; ++pass)
    for (int32_t y = 0; y < height; ++y) {
      for (int32_t k = -reach; k <= reach; ++k)
        runs[k + reach] = images[pass % 2] + clipped(y + k, height) * bytes;
      box_pass(runs.data(), box, bytes, images[(pass + 1) % 2] + y * bytes);
    }
}

}  // namespace deit::cpu
