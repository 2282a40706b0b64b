// The affine ops: where an output pixel's centre lies in the source, and what is interpolated there.
//
// Real is the type of coordinates and weights, double as in Pillow or float for the fast mode. Value is what is
// interpolated: a channel, or a vector of them; it is the same arithmetic for each.
//
// Source: Pillow 12 src/libImaging/Geometry.c, affine_transform, bilinear_filter32RGB and bicubic_filter32RGB. The
// cubic has a = -1, other than that of resize. Pixels beyond the edge repeat it; centres outside the image get the fill
// colour.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "plan.h"

namespace deit {

HOST_DEVICE int32_t clipped(int32_t index, int32_t count) { return index < 0 ? 0 : index < count ? index : count - 1; }

// A source point between the pixels (row, column) and (row + 1, column + 1), dy and dx of the way.
template <typename Real>
struct Point {
  bool inside;
  int32_t row, column;
  Real dy, dx;
};

template <typename Real>
HOST_DEVICE int32_t floored(Real value) {
  const auto whole = static_cast<int32_t>(value);
  return whole - (static_cast<Real>(whole) > value);
}

template <typename Real>
HOST_DEVICE Point<Real> source_point(const Real* matrix, int32_t y, int32_t x, int32_t height, int32_t width) {
  const Real centre_x = static_cast<Real>(x) + Real(0.5), centre_y = static_cast<Real>(y) + Real(0.5);
  const Real at_x = matrix[0] * centre_x + matrix[1] * centre_y + matrix[2];
  const Real at_y = matrix[3] * centre_x + matrix[4] * centre_y + matrix[5];
  const bool inside =
      at_x >= 0 && at_x < static_cast<Real>(width) && at_y >= 0 && at_y < static_cast<Real>(height);
  const Real left = inside ? at_x - Real(0.5) : 0, above = inside ? at_y - Real(0.5) : 0;
  const int32_t column = floored(left), row = floored(above);
  return {inside, row, column, above - static_cast<Real>(row), left - static_cast<Real>(column)};
}

// Taps may be integers or Real; differences of integers are exact, so both give the same bits.
template <typename Value, typename Tap, typename Real>
HOST_DEVICE Value linear(Tap v1, Tap v2, Real d) {
  return Value(v1) + Value(v2 - v1) * d;
}

template <typename Value, typename Tap, typename Real>
HOST_DEVICE Value cubic(Tap v1, Tap v2, Tap v3, Tap v4, Real d) {
  const Tap p2 = v3 - v1, p3 = (v1 - v2) * 2 + v3 - v4, p4 = v2 - v1 - v3 + v4;
  return Value(v2) + (Value(p2) + (Value(p3) + Value(p4) * d) * d) * d;
}

// Along a line of the source; load(index) gives its pixels. Where d is 0 the polynomial is its first term, exactly.
template <typename Value, typename Real, typename Load>
HOST_DEVICE Value along(Filter filter, int32_t at, Real d, int32_t count, const Load& load) {
  if (d == 0) return load(clipped(at, count));
  if (filter == Filter::bilinear) return linear<Value>(load(clipped(at, count)), load(clipped(at + 1, count)), d);
  return cubic<Value>(load(clipped(at - 1, count)), load(clipped(at, count)), load(clipped(at + 1, count)),
                      load(clipped(at + 2, count)), d);
}

// load(row, column) gives a pixel of the source as a Value.
template <typename Value, typename Real, typename Load>
HOST_DEVICE Value interpolate(const Point<Real>& point, Filter filter, int32_t height, int32_t width,
                              const Load& load) {
  return along<Value>(filter, point.row, point.dy, height, [&](int32_t row) {
    return along<Value>(filter, point.column, point.dx, width, [&](int32_t column) { return load(row, column); });
  });
}

}  // namespace deit
