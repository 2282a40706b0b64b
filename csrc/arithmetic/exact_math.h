// exp, log, sin, cos and normal numbers built of + - * / and sqrt in one fixed order: equal bits to
// deit_kernels/augment/reference/exact_math.py on every machine.
//
// libm, NumPy and CUDA disagree in the last bit, and a crop box is rounded from such a value. sqrt and rint are
// correctly rounded everywhere and need no help. exp and log err by less than 3 units in the last place, sin and cos by
// less than 2**-52. No function branches, so that a loop over pixels vectorises.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "philox.h"

namespace deit {

// ln 2 in two parts: k * ln2_high is exact for |k| < 2**20, ln2_low holds the rest.
constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;

HOST_DEVICE double from_bits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

HOST_DEVICE uint64_t to_bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// e**x for |x| < 700: x = k ln 2 + r with |r| <= ln 2 / 2, then the Taylor series of r to the 13th power.
HOST_DEVICE double exact_exp(double x) {
  const double inverse_factorial[14] = {1.0,           1.0,          1.0 / 2,       1.0 / 6,        1.0 / 24,
                                        1.0 / 120,     1.0 / 720,    1.0 / 5040,    1.0 / 40320,    1.0 / 362880,
                                        1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
  const double k = rint(x * 1.44269504088896338700e+00);
  const double r = (x - k * ln2_high) - k * ln2_low;
  double series = inverse_factorial[13];
  for (int power = 12; power >= 0; --power) series = series * r + inverse_factorial[power];
  return series * from_bits(static_cast<uint64_t>(1023 + static_cast<int64_t>(k)) << 52);
}

// ln x for normal x > 0: x = m 2**e with m in [sqrt(1/2), sqrt(2)), then 2 artanh((m - 1) / (m + 1)) to the 23rd power.
HOST_DEVICE double exact_log(double x) {
  const uint64_t bits = to_bits(x);
  const double half = from_bits((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000);  // in [1/2, 1)
  const bool below = half < 0.70710678118654752440;
  const double m = below ? half * 2.0 : half;
  const double e = static_cast<double>(static_cast<int32_t>(bits >> 52) - 1022) - (below ? 1.0 : 0.0);
  const double s = (m - 1.0) / (m + 1.0);
  const double square = s * s;
  double series = 1.0 / 23.0;
  for (int odd = 21; odd > 0; odd -= 2) series = series * square + 1.0 / odd;
  return e * ln2_high + (e * ln2_low + 2.0 * s * series);
}

struct SinCos {
  double sin, cos;
};

// For |x| < 2**20: x = k pi/2 + r with |r| <= pi/4, then the Taylor series to the 17th and 16th power.
HOST_DEVICE SinCos exact_sin_cos(double x) {
  constexpr double high = 1.57079632673412561417e+00, low = 6.07710050650619224932e-11;  // k * high is exact
  const double k = rint(x * 6.36619772367581382433e-01);
  const double r = (x - k * high) - k * low;
  const double z = r * r;
  const double odd[9] = {1.0,
                         -1.0 / 6,
                         1.0 / 120,
                         -1.0 / 5040,
                         1.0 / 362880,
                         -1.0 / 39916800,
                         1.0 / 6227020800.0,
                         -1.0 / 1307674368000.0,
                         1.0 / 355687428096000.0};
  const double even[9] = {1.0,
                          -1.0 / 2,
                          1.0 / 24,
                          -1.0 / 720,
                          1.0 / 40320,
                          -1.0 / 3628800,
                          1.0 / 479001600.0,
                          -1.0 / 87178291200.0,
                          1.0 / 20922789888000.0};
  double sine = odd[8], cosine = even[8];
  for (int term = 7; term >= 0; --term) {
    sine = sine * z + odd[term];
    cosine = cosine * z + even[term];
  }
  sine = sine * r;
  const int32_t quadrant = static_cast<int32_t>(k);
  const bool swapped = quadrant & 1;
  const double s = swapped ? cosine : sine, c = swapped ? sine : cosine;
  return {quadrant & 2 ? -s : s, (quadrant + 1) & 2 ? -c : c};
}

struct Normals {
  double first, second;
};

// Two independent normal numbers of mean 0 and deviation 1: Box and Muller. The largest is 6.66.
HOST_DEVICE Normals normals(uint32_t radius_word, uint32_t angle_word) {
  const double radius = sqrt(-2.0 * exact_log((radius_word + 1.0) * 0x1p-32));
  const SinCos angle = exact_sin_cos(6.283185307179586 * uniform(angle_word));
  return {radius * angle.cos, radius * angle.sin};
}

}  // namespace deit
