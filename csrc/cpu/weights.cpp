// The weights of a resize pass, tap by tap over all outputs: vectors of outputs, and each output's floating-point sum
// in Pillow's order.
#include "weights.h"

#include <algorithm>

#include "stages.h"

namespace deit::cpu {
namespace {

// The weight of tap `tap` of `size` outputs, 0 beyond an output's count; added to their totals.
VECTOR_CLONES void weigh(const Axis& axis, int32_t tap, int32_t size, const int32_t* __restrict first,
                         const int32_t* __restrict count, const double* __restrict centre, double* __restrict weight,
                         double* __restrict total) {
  const double shrink = 1.0 / axis.stretch;
  const auto weigh_by = [&](auto filter) {
    for (int32_t i = 0; i < size; ++i) {
      const double own = filter((first[i] + tap - centre[i] + 0.5) * shrink);
      weight[i] = tap < count[i] ? own : 0.0;
      total[i] += weight[i];
    }
  };
  if (axis.filter == Filter::bicubic)
    weigh_by([](double x) { return bicubic(x); });
  else
    weigh_by([](double x) { return bilinear(x); });
}

VECTOR_CLONES void to_fixed_point(int32_t size, const double* __restrict weight, const double* __restrict total,
                                  int32_t* __restrict value) {
  for (int32_t i = 0; i < size; ++i) value[i] = fixed_point(weight[i], total[i]);
}

#ifdef DEIT_AVX512
// Weights are less than 2 in size, so the highest digit is far from -128 and 127.
VECTOR_CLONES void to_digits(int32_t size, int32_t taps, const int32_t* value, int32_t* quad) {
  constexpr uint32_t balanced = 0x808080;
  std::fill(quad, quad + digits * size, 0);
  for (int32_t tap = 0; tap < taps; ++tap, value += size)
    for (int digit = 0; digit < digits; ++digit)
      for (int32_t i = 0; i < size; ++i) {
        const uint32_t weight = (static_cast<uint32_t>(value[i]) + balanced) ^ balanced;
        quad[digit * size + i] |= static_cast<int32_t>((weight >> (8 * digit) & 0xFF) << (8 * tap));
      }
}
#endif

}  // namespace

void Weights::build(const Axis& axis, int32_t resized, int32_t window, int32_t size) {
  first.resize(size);
  count.resize(size);
  centre.resize(size);
  total.assign(size, 0.0);
  weight.resize(size);
  lowest = axis.before;
  end = 0;
  int32_t most = 0;
  for (int32_t i = 0; i < size; ++i) {
    const Taps taps = axis.taps(reflect(window + i, resized));
    first[i] = taps.first;
    count[i] = taps.count;
    centre[i] = taps.centre;
    lowest = std::min(lowest, taps.first);
    end = std::max(end, taps.first + taps.count);
    most = std::max(most, taps.count);
  }
  weight.resize(size_t(most) * size);
  value.resize(size_t(most) * size);
  for (int32_t tap = 0; tap < most; ++tap)
    weigh(axis, tap, size, first.data(), count.data(), centre.data(), &weight[size_t(tap) * size], total.data());
  for (int32_t tap = 0; tap < most; ++tap)
    to_fixed_point(size, &weight[size_t(tap) * size], total.data(), &value[size_t(tap) * size]);
#ifdef DEIT_AVX512
  if (!has_avx512) return;
  const int32_t quads = (most + taps_at_once - 1) / taps_at_once;
  quad.resize(size_t(quads) * digits * size);
  for (int32_t q = 0; q < quads; ++q)
    to_digits(size, std::min(taps_at_once, most - q * taps_at_once), &value[size_t(q) * taps_at_once * size],
              &quad[size_t(q) * digits * size]);
#endif
}

}  // namespace deit::cpu
