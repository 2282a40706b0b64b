// Passes over one row of logits for a binary cross-entropy: a sigmoid p for every class and a target t that is never built.
//
// Everything is computed from e = exp(−|x|), so nothing cancels: a class costs log(1 + e), and |x| times what the target
// lacks to 1 where x > 0, the target where it is not.
#pragma once

#include "../loss.h"
#include "loss_rows.h"

namespace deit::cpu {

// t and 1 − t of the classes of one vector.
template <int bytes>
struct BinaryTarget {
  Floats<bytes> there, absent;
};

// A target of at most two classes, smoothed and compared with a threshold: its numbers are known before the row is read.
struct BinaryPicks {
  int32_t label[2];
  float there[2], absent[2], others_there, others_absent;

  BinaryPicks(const Picks& picks, const LossCall& call) : label{-1, -1}, there{}, absent{} {
    const double spread = call.label_smoothing / static_cast<double>(call.classes);
    const bool one_class = picks.count == 2 && picks.label[0] == picks.label[1];
    for (int k = 0; k < (one_class ? 1 : picks.count); ++k) {
      label[k] = static_cast<int32_t>(picks.label[k]);
      set(one_class ? picks.weight[0] + picks.weight[1] : picks.weight[k], spread, call, there[k], absent[k]);
    }
    set(0, spread, call, others_there, others_absent);
  }

  template <int bytes, typename Ending>
  INTO_CALLER BinaryTarget<bytes> at(int64_t i, int64_t part, Ending) const {
    const int32_t begin = static_cast<int32_t>(i - part * Vector<bytes>::width);
    const Words<bytes> here = lane_numbers<bytes>(part) + begin;
    Floats<bytes> t = here == label[0] ? all<bytes>(there[0]) : all<bytes>(others_there);
    Floats<bytes> lack = here == label[0] ? all<bytes>(absent[0]) : all<bytes>(others_absent);
    t = here == label[1] ? all<bytes>(there[1]) : t;
    lack = here == label[1] ? all<bytes>(absent[1]) : lack;
    return {t, lack};
  }

 private:
  static void set(double weight, double spread, const LossCall& call, float& there, float& absent) {
    if (call.target_threshold) {  // in the reference's float32
      const float keep = static_cast<float>(1 - call.label_smoothing);
      const float smoothed = static_cast<float>(weight) * keep + static_cast<float>(spread);
      there = smoothed > static_cast<float>(*call.target_threshold) ? 1.0f : 0.0f;
      absent = 1 - there;
    } else {
      there = static_cast<float>((1 - call.label_smoothing) * weight + spread);
      absent = static_cast<float>((1 - call.label_smoothing) * (1 - weight) + (call.label_smoothing - spread));
    }
  }
};

// Probabilities, smoothed; `thresholded`: and compared with a threshold.
template <bool thresholded>
struct BinaryDense {
  const float* target;
  float keep, spread, threshold;

  BinaryDense(const float* target, const LossCall& call)
      : target(target), keep(static_cast<float>(1 - call.label_smoothing)),
        spread(static_cast<float>(call.label_smoothing / static_cast<double>(call.classes))),
        threshold(static_cast<float>(call.target_threshold.value_or(0))) {}

  template <int bytes, typename Ending>
  INTO_CALLER BinaryTarget<bytes> at(int64_t i, int64_t part, Ending end) const {
    Floats<bytes> t = load<bytes>(target + i, 0.0f, part, end) * keep + spread;
    if constexpr (thresholded) t = t > threshold ? all<bytes>(1.0f) : Floats<bytes>{};
    return {t, 1.0f - t};
  }
};

template <int bytes>
INTO_CALLER Floats<bytes> size_of(Floats<bytes> x) {
  return (Floats<bytes>)((Words<bytes>)x & 0x7FFFFFFF);
}

// The sum over the classes, `weighted` each times its weight w. A weight of 0 takes nothing from an infinite logit.
template <int bytes, bool weighted, typename Target>
INTO_CALLER double binary_loss(const float* x, int64_t n, const Target& target, const float* w, const Ahead& ahead) {
  LaneSums<bytes> sum;
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    ahead.fetch(i);
    const Floats<bytes> logits = load<bytes>(x + i, 0.0f, part, end), size = size_of<bytes>(logits);
    const BinaryTarget<bytes> wanted = target.template at<bytes>(i, part, end);
    const Floats<bytes> weight = logits > 0.0f ? wanted.absent : wanted.there;
    const Floats<bytes> distance = weight == 0.0f ? Floats<bytes>{} : weight * size;
    Floats<bytes> cost = log_1_plus<bytes>(exponential<bytes>(-size)) + distance;
    if constexpr (weighted) cost = times<bytes>(cost, load<bytes>(w + i, 0.0f, part, end));
    sum.part[part] += kept<bytes>(cost, part, end);
  }, sum);
  return sum.total();
}

// gradient = scale · (p − t), `weighted` times w, each taken from what it lacks to 1 where p is over 1/2.
template <int bytes, bool weighted, typename Target>
INTO_CALLER void binary_gradient(const float* x, int64_t n, const Target& target, const float* w, double scale,
                                 float* gradient) {
  const float by = static_cast<float>(scale);
  over_row<bytes>(n, [&](int64_t i, int64_t part, auto end) IN_LANES {
    const Floats<bytes> logits = load<bytes>(x + i, 0.0f, part, end);
    const BinaryTarget<bytes> wanted = target.template at<bytes>(i, part, end);
    const Floats<bytes> e = exponential<bytes>(-size_of<bytes>(logits)), smaller = e / (1.0f + e);
    Floats<bytes> slope = logits > 0.0f ? wanted.absent - smaller : smaller - wanted.there;
    if constexpr (weighted) slope = times<bytes>(slope, load<bytes>(w + i, 0.0f, part, end));
    store<bytes>(slope * by, gradient + i, part, end);
  });
}

}  // namespace deit::cpu
