// Binds the losses on the CPU to the ops whose schemas deit_kernels/distill_loss/op.py defines.
//
// As in ops.cpp only the LibTorch stable ABI is used. The functions read the stack of arguments themselves: two ops
// share nineteen of them, and a call with a float64 head goes on, as it is, to the op's overload `exact`, which Python
// implements by the reference.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "loss.h"

namespace deit {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;
using Stack = StableIValue*;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// One call, in the order of the schema that forward and backward share: eight tensors, then eleven options.
struct Arguments {
  static constexpr int tensors = 8, threshold = 17, count = 19;
  std::optional<Tensor> tensor[tensors];
  LossCall call;
  bool mean, exact;

  static Arguments of_both_ops(Stack stack) {
    Arguments read;
    for (int i = 0; i < tensors; ++i) read.tensor[i] = to<std::optional<Tensor>>(stack[i]);
    read.call.soft = to<bool>(stack[8]);
    read.call.alpha = to<double>(stack[9]);
    read.call.tau = to<double>(stack[10]);
    read.call.numel = to<bool>(stack[11]);
    read.call.label_smoothing = to<double>(stack[12]);
    read.call.teacher_smoothing = to<double>(stack[13]);
    read.call.ignore_index = to<int64_t>(stack[14]);
    read.mean = to<bool>(stack[15]);
    read.call.binary = to<bool>(stack[16]);
    read.call.target_threshold = to<std::optional<double>>(stack[threshold]);
    read.call.sum_classes = to<bool>(stack[18]);
    read.look();
    return read;
  }

  static Arguments of_cross_entropy(Stack stack) {
    Arguments read;
    read.tensor[0] = to<Tensor>(stack[0]);
    read.tensor[4] = to<Tensor>(stack[1]);
    read.call.tau = 1;
    read.call.label_smoothing = to<double>(stack[2]);
    read.call.ignore_index = to<int64_t>(stack[3]);
    read.mean = to<bool>(stack[4]);
    read.look();
    return read;
  }

  // Whether the term with a gradient for a head is there.
  bool base() const { return tensor[0] && call.alpha < 1; }
  bool distill() const { return tensor[2] && call.alpha > 0; }

  ScalarType head_type(int index) const { return tensor[index]->scalar_type(); }

  // What `columns` is 0 for is a vector.
  bool has_shape(const Tensor& given, int64_t columns) const {
    return given.dim() == (columns ? 2 : 1) && given.size(0) == call.rows && (!columns || given.size(1) == columns);
  }

 private:
  Arguments() : call{} {}

  void look() {
    const auto& [cls, dist, teacher, probs, target, partner, lam, weight] = tensor;
    require(cls || dist, "a call has logits");
    const Tensor& logits = cls ? *cls : *dist;
    require(logits.dim() == 2 && logits.size(1) >= 1 && logits.size(1) < (1 << 24), "logits are (B, C), C below 2**24");
    call.rows = logits.size(0);
    call.classes = logits.size(1);
    call.cls = matrix(cls, call.classes);
    call.dist = matrix(dist, call.classes);
    exact = call.cls.type == Number::float64 || call.dist.type == Number::float64;
    call.lam = matrix(lam, 0);
    call.partner = labels(partner, 0);
    if (target && target->scalar_type() == ScalarType::Long)
      call.labels = labels(target, 0);
    else
      call.dense = matrix(target, call.classes);
    if (probs) {
      require(probs->dim() == 2 && probs->size(1) <= call.classes, "a TopK has at most C classes");
      call.listed = probs->size(1);
      call.teacher_probs = matrix(probs, call.listed);
      call.teacher_labels = labels(teacher, call.listed);
    } else if (teacher && teacher->scalar_type() == ScalarType::Long) {
      call.teacher_labels = labels(teacher, 0);
    } else {
      call.teacher = matrix(teacher, call.classes);
    }
    if (weight) {
      require(weight->dim() == 1 && weight->size(0) == call.classes, "weights of classes are (C,)");
      call.weight = {weight->const_data_ptr(), number(*weight), 0, weight->stride(0)};
    }
    require(!(cls || weight) || target, "a base term, and weights, have a target");
    require(!partner == !lam && (!partner || (target && target->dim() == 1)), "a mixed target has labels and lam");
    require(!teacher || teacher->scalar_type() != ScalarType::Long || call.soft == !!probs,
            "labels are a hard teacher, a TopK is a soft one");
  }

  Matrix matrix(const std::optional<Tensor>& given, int64_t columns) const {
    if (!given) return {};
    require(has_shape(*given, columns), "logits and probabilities are (B, C), lam is (B,)");
    return {given->const_data_ptr(), number(*given), given->stride(0), columns ? given->stride(1) : 0};
  }

  static Number number(const Tensor& given) {
    const ScalarType type = given.scalar_type();
    require(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
                type == ScalarType::Double,
            "logits, probabilities, lam and weights are floating-point");
    return type == ScalarType::Float      ? Number::float32
           : type == ScalarType::Half     ? Number::float16
           : type == ScalarType::BFloat16 ? Number::bfloat16
                                          : Number::float64;
  }

  Labels labels(const std::optional<Tensor>& given, int64_t columns) const {
    if (!given) return {};
    require(has_shape(*given, columns) && given->scalar_type() == ScalarType::Long, "labels are int64 (B,)");
    return {static_cast<const int64_t*>(given->const_data_ptr()), given->stride(0), columns ? given->stride(1) : 0};
  }
};

Tensor new_tensor(std::initializer_list<int64_t> shape, ScalarType type) {
  int64_t strides[2] = {1, 1};
  if (shape.size() == 2) strides[0] = shape.begin()[1];
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(), strides,
                                                  to<int32_t>(from(type)), aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Tensor new_rows(const Arguments& given) {
  return given.mean ? new_tensor({}, ScalarType::Float) : new_tensor({given.call.rows}, ScalarType::Float);
}

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// Threads start only where each has some ten microseconds to do.
template <typename Body>
void in_parallel(const LossCall& call, const Body& body) {
  const int64_t rows = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, call.classes));
  if (call.rows <= rows) return body(0, call.rows);
  torch::stable::parallel_for(0, call.rows, rows, body);
}

float weighted(const Terms& terms, double alpha) {
  if (alpha == 0) return static_cast<float>(terms.base);
  if (alpha == 1) return static_cast<float>(terms.distill);
  return static_cast<float>((1 - alpha) * terms.base + alpha * terms.distill);
}

void require_values(const LossCall& call) {
  const std::string problem = cpu::problem_of(call);
  require(problem.empty(), problem.c_str());
}

// Python's implementation of an op, by the reference; the stack is as the op has found it.
void run_exact(const char* name, Stack stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "exact", stack, TORCH_ABI_VERSION));
}

// Both terms of every row, and its statistics at `saved`.
std::vector<Terms> rows_of(const LossCall& call, float* saved) {
  if (call.weight.data) {
    const std::string problem = cpu::problem_of_weight(call);
    require(problem.empty(), problem.c_str());
  }
  std::vector<Terms> terms(call.rows);
  std::atomic<bool> good = true;
  in_parallel(call, [&](int64_t begin, int64_t end) {
    if (!cpu::loss_forward(call, begin, end, terms.data(), saved)) good = false;
  });
  if (!good) require_values(call);
  require(good, "a label, lam or teacher was written to while the loss read it");
  return terms;
}

// What a mean divides by.
float divisor(const LossCall& call, const float* saved) {
  const int64_t columns = call.columns();
  double sum = 0;
  for (int64_t row = 0; row < call.rows; ++row, saved += columns)
    sum += call.divides_by_weights() ? saved[target_weight] : saved[row_weight] != 0;
  return static_cast<float>(sum);
}

// Both terms over the rows that count; one order of the rows, so one result for any number of threads.
Terms mean_of(const std::vector<Terms>& terms, double count) {
  Terms sum{0, 0};
  for (const Terms& row : terms) {
    sum.base += row.base;
    sum.distill += row.distill;
  }
  return {sum.base / count, sum.distill / count};
}

void forward(Stack stack, uint64_t, uint64_t) {
  const Arguments given = Arguments::of_both_ops(stack);
  const LossCall& call = given.call;
  if (given.exact) {
    require_values(call);
    int at = 0;
    for (const std::optional<Tensor>& tensor : given.tensor) stack[at++] = from(tensor);
    stack[Arguments::threshold] = from(call.target_threshold);
    return run_exact("deit_kernels::distillation_loss_forward", stack);
  }
  const Tensor statistics = new_tensor({call.rows, call.columns()}, ScalarType::Float);
  const std::vector<Terms> rows = rows_of(call, floats(statistics));
  const Tensor loss = new_rows(given), base = new_rows(given), distill = new_rows(given);
  const Tensor count = given.mean ? new_tensor({}, ScalarType::Float) : new_tensor({0}, ScalarType::Float);
  const auto write = [&](int64_t at, const Terms& terms) {
    floats(loss)[at] = weighted(terms, call.alpha);
    floats(base)[at] = static_cast<float>(terms.base);
    floats(distill)[at] = static_cast<float>(terms.distill);
  };
  if (given.mean)
    write(0, mean_of(rows, *floats(count) = divisor(call, floats(statistics))));
  else
    for (int64_t row = 0; row < call.rows; ++row) write(row, rows[row]);
  int at = 0;
  for (const Tensor* result : {&loss, &base, &distill, &statistics, &count}) stack[at++] = from(*result);
}

// Its callers need no gradient, so no statistics: a tensor costs a small call a tenth of its time.
void cross_entropy(Stack stack, uint64_t, uint64_t) {
  const Arguments given = Arguments::of_cross_entropy(stack);
  const LossCall& call = given.call;
  require(!given.exact, "float64 logits take the op distillation_loss_forward");
  std::vector<float> saved(call.rows * statistics_columns);
  const std::vector<Terms> rows = rows_of(call, saved.data());
  const Tensor loss = new_rows(given);
  if (given.mean)
    *floats(loss) = static_cast<float>(mean_of(rows, divisor(call, saved.data())).base);
  else
    for (int64_t row = 0; row < call.rows; ++row) floats(loss)[row] = static_cast<float>(rows[row].base);
  stack[0] = from(loss);
}

void backward(Stack stack, uint64_t, uint64_t) {
  constexpr int before = 3;
  const Tensor grad = to<Tensor>(stack[0]), statistics = to<Tensor>(stack[1]), count = to<Tensor>(stack[2]);
  const Arguments given = Arguments::of_both_ops(stack + before);
  const LossCall& call = given.call;
  if (given.exact) {
    int at = 0;
    for (const Tensor* saved : {&grad, &statistics, &count}) stack[at++] = from(*saved);
    for (const std::optional<Tensor>& tensor : given.tensor) stack[at++] = from(tensor);
    stack[before + Arguments::threshold] = from(call.target_threshold);
    return run_exact("deit_kernels::distillation_loss_backward", stack);
  }
  const bool need_cls = to<bool>(stack[before + Arguments::count]);
  const bool need_dist = to<bool>(stack[before + Arguments::count + 1]);
  require(statistics.scalar_type() == ScalarType::Float && given.has_shape(statistics, call.columns()),
          "the statistics are those of the forward op");
  require(grad.scalar_type() == ScalarType::Float && count.scalar_type() == ScalarType::Float &&
              (given.mean ? grad.numel() == 1 && count.numel() == 1 : given.has_shape(grad, 0)),
          "the gradient is float32, a scalar or (B,), and the count is that of the forward op");
  require(!need_cls || (given.tensor[0] && (given.base() || (given.distill() && !given.tensor[1]))),
          "only logits of a term with a weight get a gradient");
  require(!need_dist || (given.tensor[1] && given.distill()), "only logits of a term with a weight get a gradient");

  const auto gradient = [&](bool needed, int head) {
    return needed ? new_tensor({call.rows, call.classes}, given.head_type(head)) : new_tensor({0}, ScalarType::Float);
  };
  const Tensor grad_cls = gradient(need_cls, 0), grad_dist = gradient(need_dist, 1);
  const Tensor packed = statistics.is_contiguous() ? statistics : torch::stable::contiguous(statistics);
  const auto* saved = static_cast<const float*>(packed.const_data_ptr());
  const float rows = given.mean ? *static_cast<const float*>(count.const_data_ptr()) : 1.0f;
  const Gradients results{need_cls ? grad_cls.mutable_data_ptr() : nullptr,
                          need_dist ? grad_dist.mutable_data_ptr() : nullptr,
                          static_cast<const float*>(grad.const_data_ptr()), given.mean ? 0 : grad.stride(0), rows};
  in_parallel(call, [&](int64_t begin, int64_t end) { cpu::loss_backward(call, begin, end, saved, results); });
  stack[0] = from(grad_cls);
  stack[1] = from(grad_dist);
}

}  // namespace
}  // namespace deit

STABLE_TORCH_LIBRARY_IMPL(deit_kernels, CPU, library) {
  library.impl("distillation_loss_forward", &deit::forward);
  library.impl("distillation_loss_backward", &deit::backward);
  library.impl("_cross_entropy", &deit::cross_entropy);
}
