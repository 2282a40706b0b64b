// Sixteen floats at a time, in one vector of 64 bytes or several shorter ones: a function template of the vector's size
// is compiled for every instruction set, and all do the same operations in the same order, which gives the same bits.
//
// A vector is whatever part of the sixteen the size allows. A row that is no multiple of 16 long ends with its last
// sixteen numbers, of which those that came before are left out. So a row of fewer has to have sixteen in memory, its
// own at their end.
//
// A comparison stands where its result is used, as in `a < b ? x : y`. Kept as a vector, AVX-512's masks make g++ 12 go
// from lane to lane.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#define IN_LANES __attribute__((always_inline))  // of a lambda
#define INTO_CALLER inline __attribute__((always_inline))

namespace deit::cpu {

constexpr int64_t lanes = 16;

template <int bytes>
struct Vector {
  typedef float Floats __attribute__((vector_size(bytes)));
  typedef int32_t Words __attribute__((vector_size(bytes)));
  typedef float HalfFloats __attribute__((vector_size(bytes / 2)));
  typedef double Doubles __attribute__((vector_size(bytes)));
  typedef uint16_t Halves __attribute__((vector_size(bytes / 2)));  // of 16 bits each
  static constexpr int64_t width = bytes / 4, parts = 64 / bytes;
};
template <int bytes>
using Floats = typename Vector<bytes>::Floats;
template <int bytes>
using Words = typename Vector<bytes>::Words;

// All lanes the same.
template <int bytes>
INTO_CALLER Floats<bytes> all(float number) {
  return Floats<bytes>{} + number;
}

// Of a row's last vectors: the lanes that have come before.
struct End {
  int64_t lanes_before;
};
struct Whole {};

// body(i, part, Whole or End) for every vector of a row, which begins at its i-th number. The sums that the body adds to
// are emptied after every 256 numbers.
template <int bytes, typename Body, typename... Sums>
INTO_CALLER void over_row(int64_t n, const Body& body, Sums&... sums) {
  constexpr int64_t width = Vector<bytes>::width, parts = Vector<bytes>::parts, block = sizeof...(Sums) ? 256 : 1 << 30;
  for (int64_t begin = 0, i = 0; begin + lanes <= n; begin += block) {
    const int64_t end = std::min(begin + block, n) - lanes;
    for (; i <= end; i += lanes)
      for (int64_t part = 0; part < parts; ++part) body(i + part * width, part, Whole{});
    (sums.empty(), ...);
  }
  if (n % lanes == 0) return;
  for (int64_t part = 0; part < parts; ++part) body(n - lanes + part * width, part, End{lanes - n % lanes});
}

// The numbers of the lanes of a row's `part`-th vector.
template <int bytes>
INTO_CALLER Words<bytes> lane_numbers(int64_t part) {
  constexpr int32_t numbers[lanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Words<bytes> lane;
  std::memcpy(&lane, numbers + part * Vector<bytes>::width, sizeof lane);
  return lane;
}

// Two vectors in one: `before` in the lanes that have come before.
template <int bytes>
INTO_CALLER Floats<bytes> joined(const Floats<bytes>& before, const Floats<bytes>& values, int64_t part, End end) {
  return lane_numbers<bytes>(part) < static_cast<int32_t>(end.lanes_before) ? before : values;
}

// `values` without the lanes that have come before.
template <int bytes>
INTO_CALLER Floats<bytes> kept(const Floats<bytes>& values, int64_t, Whole) {
  return values;
}
template <int bytes>
INTO_CALLER Floats<bytes> kept(const Floats<bytes>& values, int64_t part, End end) {
  return joined<bytes>(Floats<bytes>{}, values, part, end);
}

template <int bytes>
INTO_CALLER Floats<bytes> load(const float* x) {
  Floats<bytes> values;
  std::memcpy(&values, x, sizeof values);
  return values;
}
template <int bytes>
INTO_CALLER Floats<bytes> load(const float* x, float, int64_t, Whole) {
  return load<bytes>(x);
}
template <int bytes>
INTO_CALLER Floats<bytes> load(const float* x, float before, int64_t part, End end) {
  return joined<bytes>(all<bytes>(before), load<bytes>(x), part, end);
}

template <int bytes>
INTO_CALLER void store(const Floats<bytes>& values, float* x, int64_t, Whole) {
  std::memcpy(x, &values, sizeof values);
}
template <int bytes>
INTO_CALLER void store(const Floats<bytes>& values, float* x, int64_t part, End end) {
  const Floats<bytes> both = joined<bytes>(load<bytes>(x), values, part, end);
  std::memcpy(x, &both, sizeof both);
}

// e**x for x <= 0: exactly 1 at 0, denormal below ln 2**-126, NaN for NaN. x = k ln 2 + r with |r| <= ln 2 / 2, then a
// polynomial of r (Cephes' expf); errs by less than one unit in the last place. The power is 2**(k + 24), which is normal
// down to where the result rounds to 0.
template <int bytes>
INTO_CALLER Floats<bytes> exponential(Floats<bytes> x) {
  constexpr float rounding = 12582912.0f;  // 1.5 * 2**23: a small number added to it becomes an integer
  const Floats<bytes> shifted = x * 1.44269504088896341f + rounding, k = shifted - rounding;
  const Floats<bytes> r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  Floats<bytes> series = r * 1.9875691500e-4f + 1.3981999507e-3f;
  series = series * r + 8.3334519073e-3f;
  series = series * r + 4.1665795894e-2f;
  series = series * r + 1.6666665459e-1f;
  series = series * r + 5.0000001201e-1f;
  series = (series * (r * r) + r) + 1.0f;
  const Words<bytes> power = ((Words<bytes>)shifted + (127 + 24 - 0x4B400000)) << 23;
  return x < -104.0f ? Floats<bytes>{} : series * (Floats<bytes>)power * 0x1p-24f;
}

// log(1 + e) for e in [0, 1]: 2 artanh(e / (2 + e)), whose series is a polynomial that errs by 1e-8.
template <int bytes>
INTO_CALLER Floats<bytes> log_1_plus(Floats<bytes> e) {
  const Floats<bytes> s = e / (e + 2.0f), square = s * s, twice = s + s;
  Floats<bytes> series = square * 0.14005993f + 0.14000903f;
  series = series * square + 0.20010763f;
  series = series * square + 0.33333209f;
  return twice + twice * (square * series);
}

}  // namespace deit::cpu
