// The affine ops on the CPU, line by line, so that the polynomials of arithmetic/affine.h run over whole vectors of bytes.
//
// A line's source points are one run: rounding keeps their coordinates in order. Of each run the pixels at the same
// place of the 4 x 4 (or 2 x 2) neighbourhood form a tap line. Where rows and columns advance in step with the output,
// as in shear_x, translate_x and translate_y, a tap line is the source itself; else its pixels are gathered.
#include <cstring>
#include <type_traits>

#include "../arithmetic/affine.h"
#include "stages.h"
#include "transpose.h"

namespace deit::cpu {
namespace {

// The source with its edge pixels repeated twice on every side, so that no row or column has to be clipped.
struct Padded {
  static constexpr int64_t margin = 2;
  const uint8_t* origin;  // the pixel (0, 0)
  int32_t height, width;
  int64_t stride;

  static Padded copy_of(const uint8_t* image, int32_t height, int32_t width, std::vector<uint8_t>& memory) {
    const int64_t line_bytes = channels * width, edge = margin * channels, stride = line_bytes + 2 * edge;
    uint8_t* memory_begin = at_least(memory, (height + 2 * margin) * stride + 4);  // a gather reads one byte too many
    for (int64_t y = -margin; y < height + margin; ++y) {
      uint8_t* line = memory_begin + (y + margin) * stride;
      const uint8_t* from = image + clipped(static_cast<int32_t>(y), height) * line_bytes;
      for (int64_t i = 0; i < edge; i += channels) {
        std::memcpy(line + i, from, channels);
        std::memcpy(line + edge + line_bytes + i, from + line_bytes - channels, channels);
      }
      std::memcpy(line + edge, from, line_bytes);
    }
    return {memory_begin + margin * stride + edge, height, width, stride};
  }
};

// Source points of one output line and what is worked out from them; a thread keeps it.
template <typename Real>
struct Line {
  std::vector<int32_t> inside, row, column;
  std::vector<int64_t> place;  // of the point's pixel, in bytes from the source's origin
  std::vector<Real> dy, dx, weight_y, weight_x;  // weights: one for each byte
  std::vector<uint8_t> gathered[4];
  std::vector<Real> across[4];  // interpolated in x

  void resize(int32_t width) {
    for (auto* integers : {&inside, &row, &column}) integers->resize(width);
    place.resize(width + 3);
    for (auto* reals : {&dy, &dx}) reals->resize(width);
    for (auto* reals : {&weight_y, &weight_x, &across[0], &across[1], &across[2], &across[3]})
      reals->resize(channels * width);
    for (auto& bytes : gathered) bytes.resize(channels * (width + 3) + 4);
  }
};

template <typename Real>
INTO_CLONE void find_points(const Real* matrix, int32_t y, int32_t height, int32_t width, int32_t* __restrict inside,
                            int32_t* __restrict row, int32_t* __restrict column, Real* __restrict dy,
                            Real* __restrict dx) {
  for (int32_t x = 0; x < width; ++x) {
    const Point<Real> point = source_point(matrix, y, x, height, width);
    inside[x] = point.inside;
    row[x] = point.row;
    column[x] = point.column;
    dy[x] = point.dy;
    dx[x] = point.dx;
  }
}

template <typename Real>
INTO_CLONE bool any_between(const Real* d, int32_t count) {
  int32_t between = 0;
  for (int32_t i = 0; i < count; ++i) between |= d[i] != 0;
  return between;
}

template <typename Real>
INTO_CLONE void repeat_for_channels(const Real* __restrict d, int32_t count, Real* __restrict weight) {
  for (int32_t i = 0; i < count; ++i) weight[3 * i] = weight[3 * i + 1] = weight[3 * i + 2] = d[i];
}

// Whether rows are one and columns go up one by one.
INTO_CLONE bool is_in_step(const int32_t* row, const int32_t* column, int32_t count) {
  int32_t off = 0;
  for (int32_t i = 0; i < count; ++i) off |= (row[i] - row[0]) | (column[i] - i - column[0]);
  return off == 0;
}

INTO_CLONE void gather(const uint8_t* from, const int64_t* place, int32_t count, uint8_t* to) {
  for (int32_t i = 0; i < count; ++i) std::memcpy(to + channels * i, from + place[i], 4);
}

// The four pixels from each place on, into a tap line each; `place` has room for 3 places more.
INTO_CLONE void gather_four(const uint8_t* from, int64_t* place, int32_t count, std::vector<uint8_t> (&to)[4]) {
  for (int i = 0; i < 3; ++i) place[count + i] = place[count - 1];
  uint8_t* line[4] = {to[0].data(), to[1].data(), to[2].data(), to[3].data()};
  for (int32_t i = 0; i < count; i += 4, place += 4) {
    transpose_pixels({from + place[0], from + place[1], from + place[2], from + place[3]},
                     {line[0], line[1], line[2], line[3]});
    for (uint8_t*& at : line) at += 4 * channels;
  }
}

template <typename Real>
INTO_CLONE void store(Real value, uint8_t* to) {
  *to = static_cast<uint8_t>(static_cast<int32_t>(value > 0 ? (value < 255 ? value : 255) : 0));
}
template <typename Real>
INTO_CLONE void store(Real value, Real* to) {
  *to = value;
}

// Bytes are subtracted as integers, which is exact and faster.
template <Filter filter, typename From, typename Real, typename To>
INTO_CLONE void interpolate_run(const From* const* taps, const Real* __restrict weight, int64_t count,
                                To* __restrict to) {
  using Value = std::conditional_t<std::is_same_v<From, uint8_t>, int32_t, Real>;
  const From *first = taps[0], *second = taps[1], *third = taps[2], *fourth = taps[3];
  for (int64_t i = 0; i < count; ++i)
    if constexpr (filter == Filter::bicubic)
      store<Real>(cubic<Real>(Value(first[i]), Value(second[i]), Value(third[i]), Value(fourth[i]), weight[i]), to + i);
    else
      store<Real>(linear<Real>(Value(first[i]), Value(second[i]), weight[i]), to + i);
}

// The points [begin, end) of a line, all inside the source, into `to`.
template <typename Real, Filter filter>
INTO_CLONE void interpolate_line(const Padded& source, Line<Real>& line, int32_t begin, int32_t end, uint8_t* to) {
  constexpr int taps = filter == Filter::bicubic ? 4 : 2, first_tap = filter == Filter::bicubic ? -1 : 0;
  const int32_t pixels = end - begin;
  const int64_t count = channels * pixels;
  const int32_t *row = &line.row[begin], *column = &line.column[begin];
  const bool down = any_between(&line.dy[begin], pixels), right = any_between(&line.dx[begin], pixels);
  if (down) repeat_for_channels(&line.dy[begin], pixels, line.weight_y.data());
  if (right || !down) repeat_for_channels(&line.dx[begin], pixels, line.weight_x.data());
  const bool in_step = is_in_step(row, column, pixels);
  int64_t* place = line.place.data();
  for (int32_t i = 0; i < (in_step ? 1 : pixels); ++i) place[i] = row[i] * source.stride + channels * column[i];

  // The pixels `below` and `beside` their points, side by side.
  const auto tap_line = [&](int below, int beside, int buffer) -> const uint8_t* {
    const uint8_t* from = source.origin + below * source.stride + beside * channels;
    if (in_step) return from + place[0];
    gather(from, place, pixels, line.gathered[buffer].data());
    return line.gathered[buffer].data();
  };
  const uint8_t* bytes[4] = {};
  if (!down || !right) {
    for (int tap = 0; tap < taps; ++tap)
      bytes[tap] = down ? tap_line(first_tap + tap, 0, tap) : tap_line(0, first_tap + tap, tap);
    return interpolate_run<filter>(bytes, (down ? line.weight_y : line.weight_x).data(), count, to);
  }
  const Real* across[4] = {};
  for (int below = 0; below < taps; ++below) {
    if (taps == 4 && !in_step) {
      gather_four(source.origin + (first_tap + below) * source.stride + first_tap * channels, place, pixels,
                  line.gathered);
      for (int tap = 0; tap < taps; ++tap) bytes[tap] = line.gathered[tap].data();
    } else {
      for (int tap = 0; tap < taps; ++tap) bytes[tap] = tap_line(first_tap + below, first_tap + tap, tap);
    }
    interpolate_run<filter>(bytes, line.weight_x.data(), count, line.across[below].data());
    across[below] = line.across[below].data();
  }
  interpolate_run<filter>(across, line.weight_y.data(), count, to);
}

template <typename Real, Filter filter>
INTO_CLONE void affine_lines(const Padded& source, const OpCall& call, Line<Real>& line, uint8_t* to) {
  const int32_t height = source.height, width = source.width;
  Real matrix[6];
  for (int i = 0; i < 6; ++i) matrix[i] = static_cast<Real>(call.matrix[i]);
  for (int32_t y = 0; y < height; ++y, to += channels * width) {
    find_points(matrix, y, height, width, line.inside.data(), line.row.data(), line.column.data(), line.dy.data(),
                line.dx.data());
    int32_t begin = 0, end = width;
    while (begin < end && !line.inside[begin]) std::memcpy(to + channels * begin++, call.fill, channels);
    while (end > begin && !line.inside[end - 1]) std::memcpy(to + channels * --end, call.fill, channels);
    if (begin < end) interpolate_line<Real, filter>(source, line, begin, end, to + channels * begin);
  }
}

template <typename Real>
INTO_CLONE void affine_image(const Padded& source, const OpCall& call, Line<Real>& line, uint8_t* to) {
  if (call.filter == static_cast<uint8_t>(Filter::bicubic))
    affine_lines<Real, Filter::bicubic>(source, call, line, to);
  else
    affine_lines<Real, Filter::bilinear>(source, call, line, to);
}

VECTOR_CLONES void affine_exact(const Padded& source, const OpCall& call, Line<double>& line, uint8_t* to) {
  affine_image(source, call, line, to);
}

VECTOR_CLONES void affine_fast(const Padded& source, const OpCall& call, Line<float>& line, uint8_t* to) {
  affine_image(source, call, line, to);
}

template <typename Real>
Line<Real>& thread_line(int32_t width) {
  thread_local Line<Real> line;
  line.resize(width);
  return line;
}

}  // namespace

void run_affine(uint8_t* image, int32_t height, int32_t width, const OpCall& call) {
  thread_local std::vector<uint8_t> memory;
  const Padded source = Padded::copy_of(image, height, width, memory);
  if (call.fast)
    affine_fast(source, call, thread_line<float>(width), image);
  else
    affine_exact(source, call, thread_line<double>(width), image);
}

}  // namespace deit::cpu
