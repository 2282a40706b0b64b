// Passes over one row of logits, which lies in the first cache after the first of them. Targets are never built.
//
// A softmax is kept as the largest logit and the sum of the other classes' exponentials, `rest`. The largest class has
// probability p = 1 / (1 + rest). Where p is over 1/2, differences from it are taken between what both sides lack to 1:
// 1 − p is rest / (1 + rest), whose digits p itself has lost.
#pragma once

#include <cmath>
#include <limits>

#include "lanes.h"

namespace deit::cpu {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Softmax {
  float largest;
  double rest;

  double log_sum() const { return rest < 1 ? std::log1p(rest) : std::log(1 + rest); }  // log is twice as fast
  double missing() const { return rest / (1 + rest); }  // 1 − p
  // What the exponential of a class is compared with to see whether it is the largest and p is over 1/2.
  float dominant() const { return rest < 1 ? 1.0f : 2.0f; }
};

// A target of at most two classes: weights sum to 1.
struct Picks {
  int count;
  int64_t label[2];
  double weight[2];
};

// `count` numbers in a tree, in the same order for every size of a vector.
template <int64_t count = lanes, typename Number, typename Join>
INTO_CALLER Number reduced(Number* number, const Join& join) {
  if constexpr (count == 1) {
    return number[0];
  } else {
    for (int64_t j = 0; j < count / 2; ++j) number[j] = join(number[j], number[j + count / 2]);
    return reduced<count / 2>(number, join);
  }
}

// Sums in float32 lanes, which `over_row` empties into float64 before many roundings meet.
template <int bytes>
struct LaneSums {
  using Doubles = typename Vector<bytes>::Doubles;
  static constexpr int64_t parts = Vector<bytes>::parts;
  Floats<bytes> part[parts] = {};
  Doubles sum[2 * parts] = {};

  INTO_CALLER void empty() {
    for (int64_t k = 0; k < parts; ++k) {
      typename Vector<bytes>::HalfFloats half[2];
      std::memcpy(half, &part[k], sizeof half);
      sum[2 * k] += __builtin_convertvector(half[0], Doubles);
      sum[2 * k + 1] += __builtin_convertvector(half[1], Doubles);
      part[k] = Floats<bytes>{};
    }
  }
  INTO_CALLER double total() {
    empty();
    double each[lanes];
    std::memcpy(each, sum, sizeof each);
    return reduced(each, [](double a, double b) IN_LANES { return a + b; });
  }
};

// The sum of exponentials, those that are 1 counted apart.
template <int bytes>
struct ExponentialSum : LaneSums<bytes> {
  Words<bytes> ones[Vector<bytes>::parts] = {};

  INTO_CALLER void add(Floats<bytes> e, int64_t part) {
    this->part[part] += e == 1.0f ? Floats<bytes>{} : e;
    ones[part] += e == 1.0f ? Words<bytes>{} + 1 : Words<bytes>{};
  }
  // The lanes that a row's end left out held the largest logit.
  INTO_CALLER double rest(int64_t n) {
    int32_t each[lanes], left_out = static_cast<int32_t>((lanes - n % lanes) % lanes);
    std::memcpy(each, ones, sizeof each);
    return this->total() + (reduced(each, [](int32_t a, int32_t b) IN_LANES { return a + b; }) - left_out - 1);
  }
};

template <int bytes>
INTO_CALLER float largest_in(const Floats<bytes>* part) {
  float each[lanes];
  std::memcpy(each, part, sizeof each);
  return reduced(each, [](float a, float b) IN_LANES { return a > b ? a : b; });
}

// A NaN is passed over; it shows in every sum.
template <int bytes>
INTO_CALLER float largest_of(const float* x, int64_t n) {
  Floats<bytes> top[Vector<bytes>::parts];
  for (Floats<bytes>& each : top) each = all<bytes>(-infinity);
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    const Floats<bytes> values = load<bytes>(x + i, -infinity, part, end);
    top[part] = values > top[part] ? values : top[part];
  });
  return largest_in<bytes>(top);
}

// The lowest class with the largest logit; -1 where one is NaN.
template <int bytes>
INTO_CALLER int64_t arg_max(const float* x, int64_t n) {
  Floats<bytes> top[Vector<bytes>::parts];
  Words<bytes> first[Vector<bytes>::parts] = {}, bad = {};  // `first`: where the vector of a lane's largest begins
  for (Floats<bytes>& each : top) each = all<bytes>(-infinity);
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    const Floats<bytes> values = load<bytes>(x + i, -infinity, part, end);
    const Words<bytes> here = Words<bytes>{} + static_cast<int32_t>(i - part * Vector<bytes>::width);
    first[part] = values > top[part] ? here : first[part];
    top[part] = values > top[part] ? values : top[part];
    bad |= values == values ? Words<bytes>{} : Words<bytes>{} + 1;
  });
  for (int64_t j = 0; j < Vector<bytes>::width; ++j)
    if (bad[j]) return -1;
  const float largest = largest_in<bytes>(top);
  float value[lanes];
  int32_t begin[lanes];
  std::memcpy(value, top, sizeof value);
  std::memcpy(begin, first, sizeof begin);
  int64_t lowest = n;
  for (int64_t j = 0; j < lanes; ++j)
    if (value[j] == largest && begin[j] + j < lowest) lowest = begin[j] + j;
  return lowest;
}

// The next rows of two matrices, fetched while this one is computed: what the processor fetches by itself ends with a
// page, about where a row of 1000 ends.
struct Ahead {
  const float *first, *second;

  INTO_CALLER void fetch(int64_t i) const {
    __builtin_prefetch(first + i);
    __builtin_prefetch(second + i);
  }
};

template <int bytes>
INTO_CALLER Softmax softmax_of(const float* x, int64_t n, const Ahead& ahead) {
  const float top = largest_of<bytes>(x, n);
  ExponentialSum<bytes> sum;
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    ahead.fetch(i);
    sum.add(exponential<bytes>(load<bytes>(x + i, top, part, end) - top), part);
  }, sum);
  return {top, sum.rest(n)};
}

// Sum of (largest − x) over the classes, which smoothing takes.
template <int bytes>
INTO_CALLER double sum_below(const float* x, int64_t n, float top) {
  LaneSums<bytes> sum;
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    sum.part[part] += top - load<bytes>(x + i, top, part, end);
  }, sum);
  return sum.total();
}

// −Σ t log p of a target of labels, smoothed. A class of weight 0 takes nothing from a logit of −inf.
template <int bytes>
INTO_CALLER double label_loss(const float* x, int64_t n, const Softmax& softmax, const Picks& picks, double smoothing) {
  const double log_sum = softmax.log_sum();
  double loss = 0;
  for (int i = 0; i < picks.count; ++i) {
    const double weight = (1 - smoothing) * picks.weight[i];
    if (weight != 0) loss += weight * ((double{softmax.largest} - x[picks.label[i]]) + log_sum);
  }
  if (smoothing != 0)
    loss += smoothing * (sum_below<bytes>(x, n, softmax.largest) / static_cast<double>(n) + log_sum);
  return loss;
}

// The same of probabilities, smoothed; their sum goes to `mass`.
template <int bytes>
INTO_CALLER double dense_loss(const float* x, const float* target, int64_t n, const Softmax& softmax, double smoothing,
                              double* mass) {
  const float top = softmax.largest, keep = static_cast<float>(1 - smoothing);
  const float spread = static_cast<float>(smoothing / static_cast<double>(n));
  LaneSums<bytes> below, sum;
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    const Floats<bytes> given = load<bytes>(target + i, 0.0f, part, end), smoothed = given * keep + spread;
    const Floats<bytes> distance = top - load<bytes>(x + i, top, part, end);
    below.part[part] += smoothed == 0.0f ? Floats<bytes>{} : smoothed * distance;
    sum.part[part] += given;
  }, below, sum);
  *mass = (1 - smoothing) * sum.total() + smoothing;
  return *mass == 0 ? below.total() : below.total() + *mass * softmax.log_sum();
}

// A weight of 0 takes nothing from an infinite number.
template <int bytes>
INTO_CALLER Floats<bytes> times(const Floats<bytes>& values, const Floats<bytes>& weight) {
  return weight == 0.0f ? Floats<bytes>{} : values * weight;
}

// to = w t of probabilities t, smoothed; returns Σ w t of those that are not.
template <int bytes>
INTO_CALLER double weighted_target(const float* target, const float* w, int64_t n, double smoothing, float* to) {
  const float keep = static_cast<float>(1 - smoothing);
  const float spread = static_cast<float>(smoothing / static_cast<double>(n));
  LaneSums<bytes> sum;
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    const Floats<bytes> given = load<bytes>(target + i, 0.0f, part, end), weight = load<bytes>(w + i, 0.0f, part, end);
    sum.part[part] += times<bytes>(given, weight);
    store<bytes>(times<bytes>(given * keep + spread, weight), to + i, part, end);
  }, sum);
  return sum.total();
}

// The same of labels.
template <int bytes>
INTO_CALLER void weighted_labels(const float* w, int64_t n, const Picks& picks, double smoothing, float* to) {
  const float spread = static_cast<float>(smoothing / static_cast<double>(n));
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    store<bytes>(load<bytes>(w + i, 0.0f, part, end) * spread, to + i, part, end);
  });
  for (int k = 0; k < picks.count; ++k)
    to[picks.label[k]] += static_cast<float>((1 - smoothing) * picks.weight[k] * w[picks.label[k]]);
}

// Of Σ p_teacher · (v − u) where it is infinite or NaN: a class counts if its probability is above 0 in float32, not only
// its exponential.
__attribute__((noinline)) inline double doubtful_dot(const float* x, float tau, float top, const float* t,
                                                     float teacher_tau, float teacher_top, int64_t n, double total) {
  double dot = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float u = (x[i] - top) / tau, v = (t[i] - teacher_top) / teacher_tau;
    const double p = std::exp(double{v}) / total;
    if (static_cast<float>(p) != 0) dot += p * (double{v} - u);
  }
  return dot;
}

struct Divergence {
  Softmax student, teacher;
  double value;  // KL(teacher ‖ student)
};

// Both at a temperature: the largest logit goes first, since dividing first loses 2e-4 of every probability at 1e4. A
// product with 1 / tau would scale all logits by the same rounding, which no sum over classes evens out.
template <int bytes>
INTO_CALLER Divergence divergence(const float* x, float tau, const float* t, float teacher_tau, int64_t n,
                                  const Ahead& ahead) {
  const float top = largest_of<bytes>(x, n), teacher_top = largest_of<bytes>(t, n);
  ExponentialSum<bytes> sum, teacher_sum;
  LaneSums<bytes> dot;
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    ahead.fetch(i);
    const Floats<bytes> u = (load<bytes>(x + i, top, part, end) - top) / tau;
    const Floats<bytes> v = (load<bytes>(t + i, teacher_top, part, end) - teacher_top) / teacher_tau;
    const Floats<bytes> e = exponential<bytes>(v);
    sum.add(exponential<bytes>(u), part);
    teacher_sum.add(e, part);
    dot.part[part] += e == 0.0f ? Floats<bytes>{} : e * (v - u);
  }, sum, teacher_sum, dot);
  const Softmax student{top, sum.rest(n)}, teacher{teacher_top, teacher_sum.rest(n)};
  const double total = 1 + teacher.rest;
  double mean = dot.total() / total;
  if (!std::isfinite(mean)) mean = doubtful_dot(x, tau, top, t, teacher_tau, teacher_top, n, total);
  return {student, teacher, mean + std::log1p((student.rest - teacher.rest) / total)};
}

template <int bytes>
INTO_CALLER float exponential_at(const float* x, int64_t class_number, const Softmax& softmax) {
  return exponential<bytes>(all<bytes>(x[class_number] - softmax.largest))[0];
}

// gradient = scale · (p − t), or added to it, for the target of `label_loss`.
template <int bytes, bool added>
INTO_CALLER void label_gradient(const float* x, int64_t n, const Softmax& softmax, const Picks& picks, double smoothing,
                                double scale, float* gradient) {
  const float top = softmax.largest, factor = static_cast<float>(scale / (1 + softmax.rest));
  const double spread = smoothing / static_cast<double>(n);
  const float offset = static_cast<float>(scale * spread);
  float before[2] = {};
  if constexpr (added)
    for (int k = 0; k < picks.count; ++k) before[k] = gradient[picks.label[k]];
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    Floats<bytes> slope = exponential<bytes>(load<bytes>(x + i, top, part, end) - top) * factor - offset;
    if constexpr (added) slope += load<bytes>(gradient + i, 0.0f, part, end);
    store<bytes>(slope, gradient + i, part, end);
  });
  const bool one_class = picks.count == 2 && picks.label[0] == picks.label[1];
  for (int k = 0; k < picks.count; ++k) {
    const double weight = one_class ? picks.weight[0] + picks.weight[1] : picks.weight[k];
    const float e = exponential_at<bytes>(x, picks.label[k], softmax);
    const double target = (1 - smoothing) * weight + spread;
    const double target_missing = (1 - smoothing) * (1 - weight) + (smoothing - spread);
    const double slope =
        e == softmax.dominant() ? target_missing - softmax.missing() : e / (1 + softmax.rest) - target;
    gradient[picks.label[k]] = static_cast<float>(before[k] + scale * slope);
  }
}

// gradient = scale · (p Σt − t) for the target of `dense_loss`.
template <int bytes>
INTO_CALLER void dense_gradient(const float* x, const float* target, int64_t n, const Softmax& softmax,
                                double smoothing, float mass, double scale, float* gradient) {
  const float top = softmax.largest, keep = static_cast<float>(1 - smoothing), by = static_cast<float>(scale);
  const float spread = static_cast<float>(smoothing / static_cast<double>(n));
  const float factor = static_cast<float>(mass / (1 + softmax.rest)), dominant = softmax.dominant();
  const float missing = static_cast<float>(mass * softmax.missing());
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    const Floats<bytes> smoothed = load<bytes>(target + i, 0.0f, part, end) * keep + spread;
    const Floats<bytes> e = exponential<bytes>(load<bytes>(x + i, top, part, end) - top);
    const Floats<bytes> slope = e == dominant ? (mass - smoothed) - missing : e * factor - smoothed;
    store<bytes>(slope * by, gradient + i, part, end);
  });
}

// gradient = scale · (p − p_teacher), or added to it.
template <int bytes, bool added>
INTO_CALLER void divergence_gradient(const float* x, float tau, const Softmax& softmax, const float* t,
                                     float teacher_tau, const Softmax& teacher, int64_t n, double scale,
                                     float* gradient) {
  const float top = softmax.largest, teacher_top = teacher.largest, by = static_cast<float>(scale);
  const float factor = static_cast<float>(1 / (1 + softmax.rest));
  const float teacher_factor = static_cast<float>(1 / (1 + teacher.rest));
  const float largest = static_cast<float>(teacher.missing() - softmax.missing());
  const float dominant = std::max(softmax.dominant(), teacher.dominant());  // of both
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    const Floats<bytes> u = (load<bytes>(x + i, top, part, end) - top) / tau, e = exponential<bytes>(u);
    const Floats<bytes> v = (load<bytes>(t + i, teacher_top, part, end) - teacher_top) / teacher_tau;
    const Floats<bytes> f = exponential<bytes>(v);
    const Floats<bytes> smaller = e < f ? e : f;
    Floats<bytes> slope = (smaller == dominant ? all<bytes>(largest) : e * factor - f * teacher_factor) * by;
    if constexpr (added) slope += load<bytes>(gradient + i, 0.0f, part, end);
    store<bytes>(slope, gradient + i, part, end);
  });
}

}  // namespace deit::cpu
