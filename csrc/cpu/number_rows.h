// Rows of any type and stride as float32, and back.
#pragma once

#include "../loss.h"
#include "lanes.h"

namespace deit::cpu {

template <int bytes>
INTO_CALLER Floats<bytes> from_bfloat16(typename Vector<bytes>::Halves bits) {
  return (Floats<bytes>)(__builtin_convertvector(bits, Words<bytes>) << 16);
}

// Exact; a half below 2**-14 counts in steps of 2**-24, as a float does from 0.5 on.
template <int bytes>
INTO_CALLER Floats<bytes> from_float16(typename Vector<bytes>::Halves bits) {
  const Words<bytes> word = __builtin_convertvector(bits, Words<bytes>), size = word & 0x7FFF;
  const Words<bytes> normal = (size << 13) + 0x38000000, special = (size << 13) + 0x70000000;
  const Floats<bytes> small = (Floats<bytes>)(size + 0x3F000000) - 0.5f;
  const Words<bytes> value = size < 0x0400 ? (Words<bytes>)small : size < 0x7C00 ? normal : special;
  return (Floats<bytes>)(value | (word & 0x8000) << 16);
}

INTO_CALLER double number_at(const Matrix& matrix, int64_t row, int64_t column = 0) {
  const int64_t at = row * matrix.row + column * matrix.column;
  if (matrix.type == Number::float32) return static_cast<const float*>(matrix.data)[at];
  if (matrix.type == Number::float64) return static_cast<const double*>(matrix.data)[at];
  const Vector<16>::Halves bits = {static_cast<const uint16_t*>(matrix.data)[at]};
  return (matrix.type == Number::float16 ? from_float16<16>(bits) : from_bfloat16<16>(bits))[0];
}

INTO_CALLER int64_t number_at(const Labels& labels, int64_t row, int64_t column = 0) {
  return labels.data[row * labels.row + column * labels.column];
}

template <int bytes, Floats<bytes> (*widened)(typename Vector<bytes>::Halves)>
INTO_CALLER void widen(const uint16_t* from, int64_t n, float* to) {
  over_row<bytes>(n, [&](int64_t i, int64_t, auto) IN_LANES {
    typename Vector<bytes>::Halves bits;
    std::memcpy(&bits, from + i, sizeof bits);
    store<bytes>(widened(bits), to + i, 0, Whole{});
  });
}

__attribute__((noinline)) inline void gather(const Matrix& matrix, int64_t row, int64_t n, float* to) {
  if (matrix.type == Number::float32 && matrix.column == 1)
    std::memcpy(to, static_cast<const float*>(matrix.data) + row * matrix.row, n * sizeof(float));
  else
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(number_at(matrix, row, i));
}

// A row in place where it lies as float32 side by side, else in `buffer`, before which there are sixteen numbers.
template <int bytes>
INTO_CALLER const float* row_of(const Matrix& matrix, int64_t row, int64_t n, float* buffer) {
  const auto begin = [&](auto* data) IN_LANES { return data + row * matrix.row; };
  if (n < lanes || matrix.column != 1 || matrix.type == Number::float64)
    gather(matrix, row, n, buffer);
  else if (matrix.type == Number::float32)
    return begin(static_cast<const float*>(matrix.data));
  else if (matrix.type == Number::float16)
    widen<bytes, from_float16<bytes>>(begin(static_cast<const uint16_t*>(matrix.data)), n, buffer);
  else
    widen<bytes, from_bfloat16<bytes>>(begin(static_cast<const uint16_t*>(matrix.data)), n, buffer);
  return buffer;
}

// To nearest, ties to even: bfloat16_bits and float16_bits of arithmetic/normalise.h.
template <int bytes>
INTO_CALLER Words<bytes> to_bfloat16(Floats<bytes> values) {
  const Words<bytes> word = (Words<bytes>)values, rounded = word + 0x7FFF + ((word >> 16) & 1);
  return (values == values ? rounded >> 16 : Words<bytes>{} + 0x7FC0) & 0xFFFF;
}

template <int bytes>
INTO_CALLER Words<bytes> to_float16(Floats<bytes> values) {
  const Words<bytes> word = (Words<bytes>)values, sign = (word >> 16) & 0x8000, size = word & 0x7FFFFFFF;
  const Words<bytes> small = (Words<bytes>)((Floats<bytes>)size + 0.5f) - 0x3F000000;
  const Words<bytes> normal = (size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13;
  const Words<bytes> finite = size < 0x38800000 ? small : size < 0x477FF000 ? normal : Words<bytes>{} + 0x7C00;
  return values == values ? finite | sign : Words<bytes>{} + 0x7E00;
}

template <int bytes, Words<bytes> (*narrowed)(Floats<bytes>)>
INTO_CALLER void narrow(const float* from, int64_t n, uint16_t* to) {
  over_row<bytes>(n, [&](int64_t i, int64_t, auto) IN_LANES {
    const auto bits = __builtin_convertvector(narrowed(load<bytes>(from + i)), typename Vector<bytes>::Halves);
    std::memcpy(to + i, &bits, sizeof bits);
  });
}

// A row of float32, before which there are sixteen numbers, as row `row` of a matrix of another type.
template <int bytes>
INTO_CALLER void write_row(const float* from, int64_t n, Number type, void* to, int64_t row) {
  if (type == Number::float32) {
    std::memcpy(static_cast<float*>(to) + row * n, from, n * sizeof(float));
    return;
  }
  uint16_t *halves = static_cast<uint16_t*>(to) + row * n, few[2 * lanes];
  uint16_t* begin = n < lanes ? few + lanes : halves;
  if (type == Number::float16)
    narrow<bytes, to_float16<bytes>>(from, n, begin);
  else
    narrow<bytes, to_bfloat16<bytes>>(from, n, begin);
  if (begin != halves) std::memcpy(halves, begin, n * sizeof(uint16_t));
}

}  // namespace deit::cpu
