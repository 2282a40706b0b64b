// Sixteen floats at a time, in one vector of 64 bytes or several shorter ones: a function template of the vector's size
// is compiled for every instruction set, and all do the same operations in the same order, which gives the same bits.
//
// A vector is whatever part of the sixteen the size allows. Loops go over a row in steps of `lanes` and, inside, over
// the parts; a row that is no multiple of 16 long ends in lanes that are filled with a number of the loop's choice.
//
// A comparison stands where its result is used, as in `a < b ? x : y`. Kept as a vector, AVX-512's masks make g++ 12 go
// from lane to lane.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

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

// body(i, part, whole) for every vector of a row; `whole` is std::true_type where it does not reach beyond n. The sums
// that the body adds to are emptied after every 256 numbers.
template <int bytes, typename Body, typename... Sums>
INTO_CALLER void over_row(int64_t n, const Body& body, Sums&... sums) {
  constexpr int64_t width = Vector<bytes>::width, parts = Vector<bytes>::parts, block = sizeof...(Sums) ? 256 : 1 << 30;
  for (int64_t begin = 0, i = 0; begin + lanes <= n; begin += block) {
    const int64_t end = std::min(begin + block, n) - lanes;
    for (; i <= end; i += lanes)
      for (int64_t part = 0; part < parts; ++part) body(i + part * width, part, std::true_type{});
    (sums.empty(), ...);
  }
  const int64_t i = n / lanes * lanes;
  if (i == n) return;
  for (int64_t part = 0; part < parts; ++part) body(i + part * width, part, std::false_type{});
}

// to[j] = from[j] for j < count <= 16. Not inlined, since a row's end is no place to be fast in many copies.
template <typename Number>
__attribute__((noinline)) void copy_end(const Number* from, int64_t count, Number* to) {
  for (int64_t j = 0; j < count; ++j) to[j] = from[j];
}

// `width` numbers from x[i] on; those from x[n] on are `fill`.
template <int bytes, typename Whole>
INTO_CALLER Floats<bytes> load(const float* x, int64_t i, int64_t n, float fill, Whole) {
  Floats<bytes> values;
  if constexpr (Whole::value) {
    std::memcpy(&values, x + i, sizeof values);
  } else {
    values = all<bytes>(fill);
    copy_end(x + i, std::min(n - i, Vector<bytes>::width), reinterpret_cast<float*>(&values));
  }
  return values;
}

template <int bytes, typename Whole>
INTO_CALLER void store(const Floats<bytes>& values, float* x, int64_t i, int64_t n, Whole) {
  if constexpr (Whole::value)
    std::memcpy(x + i, &values, sizeof values);
  else
    copy_end(reinterpret_cast<const float*>(&values), std::min(n - i, Vector<bytes>::width), x + i);
}

// e**x for x <= 0: exactly 1 at 0, 0 below ln 2**-126, NaN for NaN. x = k ln 2 + r with |r| <= ln 2 / 2, then a
// polynomial of r (Cephes' expf); errs by less than one unit in the last place.
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
  const Words<bytes> power = ((Words<bytes>)shifted + (127 - 0x4B400000)) << 23;
  return x < -87.33654f ? Floats<bytes>{} : series * (Floats<bytes>)power;
}

}  // namespace deit::cpu
