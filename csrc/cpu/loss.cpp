// Forward and backward of the losses, a row at a time: its values are checked, the passes of loss_rows.h run, and what
// backward needs is saved. Compiled for AVX-512, AVX2 and plain x86-64; all give the same bits.
#include <algorithm>
#include <vector>

#include "../loss.h"
#include "binary_rows.h"
#include "loss_rows.h"
#include "number_rows.h"

namespace deit::cpu {
namespace {

enum class Standing { counts, ignored, refused };

Standing standing_of(const LossCall& call, int64_t row) {
  bool ignored = false, refused = false;
  const auto see = [&](const Labels& labels) {
    if (!labels.data) return;
    const int64_t label = number_at(labels, row);
    ignored |= label == call.ignore_index;
    refused |= label < 0 || label >= call.classes;
  };
  see(call.labels);
  see(call.partner);
  if (!call.teacher_probs.data) see(call.teacher_labels);
  if (ignored) return Standing::ignored;
  if (call.lam.data) {
    const double lam = number_at(call.lam, row);
    refused |= !(lam >= 0 && lam <= 1);
  }
  return refused ? Standing::refused : Standing::counts;
}

Picks picks_of(const LossCall& call, int64_t row) {
  const int64_t label = number_at(call.labels, row);
  if (!call.partner.data) return {1, {label}, {1}};
  const double lam = static_cast<float>(number_at(call.lam, row));
  return {2, {label, number_at(call.partner, row)}, {lam, 1 - lam}};
}

// Logarithms of the probabilities that a TopK stands for; false where it is refused.
bool read_topk(const LossCall& call, int64_t row, float* to) {
  constexpr float empty = 1;  // no logarithm of a probability
  std::fill(to, to + call.classes, empty);
  double sum = 0;
  for (int64_t k = 0; k < call.listed; ++k) {
    const int64_t label = number_at(call.teacher_labels, row, k);
    const double probability = number_at(call.teacher_probs, row, k);
    if (label < 0 || label >= call.classes || to[label] != empty || !(probability >= 0 && probability <= 1))
      return false;
    sum += probability;
    to[label] = static_cast<float>(std::log(probability));
  }
  const double others = static_cast<double>(std::max<int64_t>(call.classes - call.listed, 1));
  std::replace(to, to + call.classes, empty, static_cast<float>(std::log(std::max(1 - sum, 0.0) / others)));
  return true;
}

// What is done with the rows of one call; `binary`: whose base term is a binary cross-entropy; `weighted`: with weights of
// the classes.
template <int bytes, bool binary, bool weighted>
class Rows {
 public:
  Rows(const LossCall& call, bool teacher)
      : call(call), n(call.classes), tau(static_cast<float>(call.tau)),
        teacher_tau(call.teacher_probs.data ? 1 : tau) {
    thread_local std::vector<float> memory;
    if (static_cast<int64_t>(memory.size()) < buffers * (lanes + n)) memory.resize(buffers * (lanes + n));
    for (int64_t k = 0; k < buffers; ++k) buffer[k] = memory.data() + k * (lanes + n) + lanes;
    matrix[cls] = &call.cls;
    matrix[dist] = &call.dist;
    matrix[dense] = &call.dense;
    matrix[logits] = teacher ? &call.teacher : nullptr;
    if constexpr (weighted) w = row_of<bytes>(call.weight, 0, n, buffer[own_weights]);
  }

  // False where the row is refused.
  INTO_CALLER bool forward(int64_t row, Terms& terms, float* saved) {
    std::fill(saved, saved + statistics_columns + weighted, 0.0f);
    terms = {0, 0};
    const Standing standing = standing_of(call, row);
    if (standing != Standing::counts) return standing == Standing::ignored;
    if (!read(row)) return false;
    saved[row_weight] = 1;
    if constexpr (weighted) saved[target_weight] = static_cast<float>(weigh(row));
    Softmax softmax{};
    if constexpr (binary) {
      if (x[cls]) terms.base = call.base_scale() * binary_term(row);
    } else if (x[cls]) {
      softmax = softmax_of<bytes>(x[cls], n, {next(cls), next(dense)});
      terms.base = base_term(softmax, row, saved);
    }
    if (!call.distills()) return true;
    if (call.soft) {
      terms.distill = soft_term(saved);
    } else {
      if (call.dist.data || binary) softmax = softmax_of<bytes>(x[dist], n, {next(dist), next(logits)});
      terms.distill = hard_term(softmax, row, saved);
      terms.base *= saved[row_weight];
    }
    if constexpr (weighted) terms.distill = times(terms.distill, saved[target_weight]) * saved[row_weight];
    return true;
  }

  INTO_CALLER void backward(int64_t row, const float* saved, const Gradients& to) {
    const float weight = saved[row_weight];
    const float scale = weight == 0 ? 0 : to.incoming[row * to.stride] / to.count * weight;
    // Whatever the row holds. That forward has accepted its values keeps no caller from bringing others.
    if (scale == 0 || standing_of(call, row) != Standing::counts) {
      clear(to.cls, call.cls, row);
      clear(to.dist, call.dist, row);
      return;
    }
    read(row);
    double distill_scale = double{scale} * call.alpha;
    bool base = call.cls.data && call.alpha < 1, distill = call.distills() && call.alpha > 0;
    if constexpr (weighted) {
      weigh(row);
      distill_scale *= saved[target_weight];
      if (distill && saved[target_weight] == 0) {
        distill = false;
        if (call.dist.data || !base) clear(call.dist.data ? to.dist : to.cls, call.student(), row);
      }
    }
    if (to.cls && base) {
      float* gradient = place(to.cls, call.cls, row);
      base_gradient(row, saved, double{scale} * (1 - call.alpha), gradient);
      if (distill && !call.dist.data) distill_gradient<true>(saved, distill_scale, gradient);
      finish(gradient, to.cls, call.cls, row);
    }
    void* alone = call.dist.data ? to.dist : base ? nullptr : to.cls;
    if (alone && distill) {
      float* gradient = place(alone, call.student(), row);
      distill_gradient<false>(saved, distill_scale, gradient);
      finish(gradient, alone, call.student(), row);
    }
  }

 private:
  enum Which { cls, dist, dense, logits, own, own_weights, own_target };  // `own`: the gradient
  static constexpr int64_t buffers = weighted ? 7 : 5;

  // The rows as float32, where they do not lie so in memory that the thread keeps. False where a TopK is refused.
  INTO_CALLER bool read(int64_t row) {
#pragma GCC unroll 1
    for (int k = 0; k < 4; ++k)
      x[k] = matrix[k] && matrix[k]->data ? row_of<bytes>(*matrix[k], row, n, buffer[k]) : nullptr;
    if (!call.dist.data) x[dist] = x[cls];
    if (!call.teacher_probs.data) return true;
    x[logits] = buffer[logits];
    return read_topk(call, row, buffer[logits]);
  }

  // Where the next row begins; this row where there is none in place, or one too long for the first cache.
  const float* next(Which which) const {
    constexpr int64_t longest = 4096;
    const bool in_place = x[which] && x[which] != buffer[which] && matrix[which]->data && n <= longest;
    return in_place ? x[which] + matrix[which]->row : x[dist];
  }

  static double times(double term, double weight) { return weight == 0 ? 0 : weight * term; }

  // The weight of the row's target. `target` becomes w t, smoothed, where more than two classes have some of it.
  INTO_CALLER double weigh(int64_t row) {
    const double smoothing = call.label_smoothing;
    target = x[dense] || (smoothing != 0 && !binary) ? buffer[own_target] : nullptr;
    if (x[dense]) return weighted_target<bytes>(x[dense], w, n, smoothing, buffer[own_target]);
    const Picks picks = picks_of(call, row);
    if (target) weighted_labels<bytes>(w, n, picks, smoothing, buffer[own_target]);
    return weight_of(picks);
  }

  double weight_of(const Picks& picks) const {
    double sum = 0;
    for (int k = 0; k < picks.count; ++k) sum += picks.weight[k] * w[picks.label[k]];
    return sum;
  }

  // The target is `weight` times these picks, whose weights sum to 1.
  Picks weighted_picks(int64_t row, double weight) const {
    Picks picks = picks_of(call, row);
    for (int k = 0; k < picks.count && weight != 0; ++k) picks.weight[k] *= w[picks.label[k]] / weight;
    return picks;
  }

  INTO_CALLER double base_term(const Softmax& softmax, int64_t row, float* saved) {
    double mass = 1, term;
    if constexpr (weighted) {
      if (target) {
        term = dense_loss<bytes>(x[cls], target, n, softmax, 0, &mass);
      } else {
        mass = weight_of(picks_of(call, row));
        term = times(label_loss<bytes>(x[cls], n, softmax, weighted_picks(row, mass), 0), mass);
      }
    } else {
      term = x[dense] ? dense_loss<bytes>(x[cls], x[dense], n, softmax, call.label_smoothing, &mass)
                      : label_loss<bytes>(x[cls], n, softmax, picks_of(call, row), call.label_smoothing);
    }
    saved[cls_max] = softmax.largest;
    saved[cls_rest] = static_cast<float>(softmax.rest);
    saved[target_sum] = static_cast<float>(mass);
    return term;
  }

  INTO_CALLER double binary_term(int64_t row) {
    const Ahead ahead{next(cls), next(dense)};
    if (!x[dense])
      return binary_loss<bytes, weighted>(x[cls], n, BinaryPicks(picks_of(call, row), call), w, ahead);
    if (call.target_threshold)
      return binary_loss<bytes, weighted>(x[cls], n, BinaryDense<true>(x[dense], call), w, ahead);
    return binary_loss<bytes, weighted>(x[cls], n, BinaryDense<false>(x[dense], call), w, ahead);
  }

  INTO_CALLER double hard_term(const Softmax& softmax, int64_t row, float* saved) {
    int64_t label = x[logits] ? arg_max<bytes>(x[logits], n) : number_at(call.teacher_labels, row);
    if (label < 0) {  // a NaN has no arg-max
      saved[row_weight] = std::numeric_limits<float>::quiet_NaN();
      label = 0;
    }
    saved[dist_max] = softmax.largest;
    saved[dist_rest] = static_cast<float>(softmax.rest);
    saved[teacher_label] = static_cast<float>(label);
    return label_loss<bytes>(x[dist], n, softmax, {1, {label}, {1}}, call.teacher_smoothing) * saved[row_weight];
  }

  INTO_CALLER double soft_term(float* saved) {
    const Divergence found = divergence<bytes>(x[dist], tau, x[logits], teacher_tau, n, {next(dist), next(logits)});
    saved[dist_max] = found.student.largest;
    saved[dist_rest] = static_cast<float>(found.student.rest);
    saved[teacher_max] = found.teacher.largest;
    saved[teacher_rest] = static_cast<float>(found.teacher.rest);
    return call.kl_scale() * found.value;
  }

  INTO_CALLER void binary_slopes(int64_t row, double scale, float* gradient) {
    if (!x[dense])
      binary_gradient<bytes, weighted>(x[cls], n, BinaryPicks(picks_of(call, row), call), w, scale, gradient);
    else if (call.target_threshold)
      binary_gradient<bytes, weighted>(x[cls], n, BinaryDense<true>(x[dense], call), w, scale, gradient);
    else
      binary_gradient<bytes, weighted>(x[cls], n, BinaryDense<false>(x[dense], call), w, scale, gradient);
  }

  INTO_CALLER void base_gradient(int64_t row, const float* saved, double scale, float* gradient) {
    if constexpr (binary) return binary_slopes(row, scale * call.base_scale(), gradient);
    const Softmax softmax{saved[cls_max], saved[cls_rest]};
    if constexpr (weighted) {
      const double mass = target ? saved[target_sum] : weight_of(picks_of(call, row));
      if (target)
        dense_gradient<bytes>(x[cls], target, n, softmax, 0, saved[target_sum], scale, gradient);
      else
        label_gradient<bytes, false>(x[cls], n, softmax, weighted_picks(row, mass), 0, scale * mass, gradient);
    } else if (x[dense])
      dense_gradient<bytes>(x[cls], x[dense], n, softmax, call.label_smoothing, saved[target_sum], scale, gradient);
    else
      label_gradient<bytes, false>(x[cls], n, softmax, picks_of(call, row), call.label_smoothing, scale, gradient);
  }

  template <bool added>
  INTO_CALLER void distill_gradient(const float* saved, double scale, float* gradient) {
    const Softmax softmax{saved[dist_max], saved[dist_rest]};
    if (call.soft) {
      const Softmax teacher{saved[teacher_max], saved[teacher_rest]};
      scale *= call.kl_scale() / call.tau;
      divergence_gradient<bytes, added>(x[dist], tau, softmax, x[logits], teacher_tau, teacher, n, scale, gradient);
    } else {
      const float given = saved[teacher_label];
      const int64_t label = given >= 0 && given < static_cast<float>(n) ? static_cast<int64_t>(given) : 0;
      label_gradient<bytes, added>(x[dist], n, softmax, {1, {label}, {1}}, call.teacher_smoothing, scale, gradient);
    }
  }

  float* place(void* gradient, const Matrix& head, int64_t row) {
    const bool here = head.type == Number::float32 && n >= lanes;
    return here ? static_cast<float*>(gradient) + row * n : buffer[own];
  }

  INTO_CALLER void finish(const float* gradient, void* to, const Matrix& head, int64_t row) {
    if (gradient == buffer[own]) write_row<bytes>(gradient, n, head.type, to, row);
  }

  void clear(void* gradient, const Matrix& head, int64_t row) {
    const int64_t size = n * (head.type == Number::float32 ? 4 : 2);
    if (gradient) std::memset(static_cast<char*>(gradient) + row * size, 0, size);
  }

  const LossCall& call;
  const int64_t n;
  const float tau, teacher_tau;
  const Matrix* matrix[4];
  const float* x[4];  // the rows that are read; null where there is none
  float* buffer[buffers];  // each after sixteen numbers that may be read
  const float *w = nullptr, *target = nullptr;  // of `weighted`: the weights, and what `weigh` says
};

template <int bytes, bool binary, bool weighted>
INTO_CALLER bool forward_rows(const LossCall& call, int64_t begin, int64_t end, Terms* terms, float* statistics) {
  Rows<bytes, binary, weighted> rows(call, true);
  bool good = true;
  for (int64_t row = begin; row < end; ++row)
    good &= rows.forward(row, terms[row], statistics + row * (statistics_columns + weighted));
  return good;
}

template <int bytes, bool binary, bool weighted>
INTO_CALLER void backward_rows(const LossCall& call, int64_t begin, int64_t end, const float* statistics,
                               const Gradients& to) {
  Rows<bytes, binary, weighted> rows(call, call.soft);  // a hard teacher's label is saved
  for (int64_t row = begin; row < end; ++row)
    rows.backward(row, statistics + row * (statistics_columns + weighted), to);
}

// Forward and backward for every size of a vector; which runs is decided when the binary loads. A binary cross-entropy
// has functions of its own, and so have weights, so that they cost the others nothing.
#define FOR_FORM(bytes, name, target, binary, weighted)                                                       \
  target bool forward_##name(const LossCall& call, int64_t begin, int64_t end, Terms* terms, float* saved) {   \
    return forward_rows<bytes, binary, weighted>(call, begin, end, terms, saved);                              \
  }                                                                                                            \
  target void backward_##name(const LossCall& call, int64_t begin, int64_t end, const float* saved,            \
                              const Gradients& to) {                                                           \
    backward_rows<bytes, binary, weighted>(call, begin, end, saved, to);                                       \
  }
#define FOR_VECTORS_OF(bytes, name, target)                \
  FOR_FORM(bytes, name, target, false, false)              \
  FOR_FORM(bytes, name##_binary, target, true, false)      \
  FOR_FORM(bytes, name##_weighted, target, false, true)    \
  FOR_FORM(bytes, name##_binary_weighted, target, true, true)
#ifndef DEIT_VECTOR_BYTES
#define DEIT_VECTOR_BYTES 16
#endif
FOR_VECTORS_OF(DEIT_VECTOR_BYTES, plain, )
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(DEIT_NO_CLONES)
FOR_VECTORS_OF(32, avx2, __attribute__((target("avx2"))))
FOR_VECTORS_OF(64, avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))

const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
const bool has_avx2 = __builtin_cpu_supports("avx2");
#define HERE(pass, form) has_avx512 ? pass##_avx512##form : has_avx2 ? pass##_avx2##form : pass##_plain##form
#else
#define HERE(pass, form) pass##_plain##form
#endif
#define FORMS_HERE(pass) HERE(pass, ), HERE(pass, _binary), HERE(pass, _weighted), HERE(pass, _binary_weighted)
const decltype(&forward_plain) forward_here[] = {FORMS_HERE(forward)};
const decltype(&backward_plain) backward_here[] = {FORMS_HERE(backward)};

int form_of(const LossCall& call) { return call.binary + 2 * (call.weight.data != nullptr); }

}  // namespace

bool loss_forward(const LossCall& call, int64_t begin, int64_t end, Terms* terms, float* statistics) {
  return forward_here[form_of(call)](call, begin, end, terms, statistics);
}

void loss_backward(const LossCall& call, int64_t begin, int64_t end, const float* statistics, const Gradients& to) {
  backward_here[form_of(call)](call, begin, end, statistics, to);
}

}  // namespace deit::cpu
