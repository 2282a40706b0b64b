// exp and log built of + - * / in one fixed order: equal bits to deit_kernels/augment/exact_math.py on every machine.
//
// libm, NumPy and CUDA disagree in the last bit, and a crop box is rounded from such a value. sqrt and rint are
// correctly rounded everywhere and need no help. Error below 3 units in the last place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

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
  double e = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1022);
  double m = from_bits((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000);  // in [1/2, 1)
  if (m < 0.70710678118654752440) {
    m = m * 2.0;
    e = e - 1.0;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double square = s * s;
  double series = 1.0 / 23.0;
  for (int odd = 21; odd > 0; odd -= 2) series = series * square + 1.0 / odd;
  return e * ln2_high + (e * ln2_low + 2.0 * s * series);
}

}  // namespace deit
