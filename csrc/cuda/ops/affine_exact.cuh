// A pixel of an affine op as arithmetic/affine.h makes it: in double as Pillow, or in float for the fast mode.
#pragma once

#include <cstdint>

#include "../../arithmetic/affine.h"
#include "../../arithmetic/colour.h"
#include "../../arithmetic/plan.h"
#include "groups.cuh"

namespace deit::cuda {

template <typename Real>
struct Rgb {
  Real red, green, blue;
};
template <typename Real>
HOST_DEVICE Rgb<Real> operator+(Rgb<Real> a, Rgb<Real> b) {
  return {a.red + b.red, a.green + b.green, a.blue + b.blue};
}
template <typename Real>
HOST_DEVICE Rgb<Real> operator-(Rgb<Real> a, Rgb<Real> b) {
  return {a.red - b.red, a.green - b.green, a.blue - b.blue};
}
template <typename Real, typename Scale>
HOST_DEVICE Rgb<Real> operator*(Rgb<Real> a, Scale scale) {
  const Real by = scale;
  return {a.red * by, a.green * by, a.blue * by};
}

template <typename Real>
DEVICE void real_pixel(const Groups& source, const OpCall& call, int32_t y, int32_t x, uint8_t* rgb) {
  Real matrix[6];
  for (int i = 0; i < 6; ++i) matrix[i] = static_cast<Real>(call.matrix[i]);
  const Point<Real> point = source_point(matrix, y, x, source.height, source.width);
  if (!point.inside) {
    for (int c = 0; c < 3; ++c) rgb[c] = call.fill[c];
    return;
  }
  const auto value = interpolate<Rgb<Real>>(
      point, static_cast<Filter>(call.filter), source.height, source.width, [&](int32_t row, int32_t column) {
        const Words4 group = *source.at(row, column / 4);
        const auto level = [&](int c) { return Real(permuted(group.word[c], 0, 0x4440u + column % 4)); };
        return Rgb<Real>{level(0), level(1), level(2)};
      });
  rgb[0] = truncated(value.red);
  rgb[1] = truncated(value.green);
  rgb[2] = truncated(value.blue);
}

// Called, not inlined: few pixels need it, and it would take registers from the others.
DEVICE_CALL void exact_pixel(Groups source, const OpCall* call, int32_t y, int32_t x, uint8_t* rgb) {
  real_pixel<double>(source, *call, y, x, rgb);
}

}  // namespace deit::cuda
