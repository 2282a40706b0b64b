// Binds the losses on the CPU to the ops whose schemas deit_kernels/distill_loss/op.py defines.
//
// As in ops.cpp only the LibTorch stable ABI is used. The functions read the stack themselves, because both ops have the
// same fifteen arguments; a float64 head sends the call, as it is, to an op that Python implements by the reference.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
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

// The arguments that both ops share, in the order of the schema.
struct Arguments {
  static constexpr int tensors = 7, count = 15;
  std::optional<Tensor> tensor[tensors];
  LossCall call;
  bool mean, exact;

  explicit Arguments(Stack stack) {
    for (int i = 0; i < tensors; ++i) tensor[i] = to<std::optional<Tensor>>(stack[i]);
    const auto &[cls, dist, teacher, probs, target, partner, lam] = tensor;
    require(cls || dist, "a call has logits");
    const Tensor& logits = cls ? *cls : *dist;
    require(logits.dim() == 2, "logits are (B, C)");
    call = {};
    call.rows = logits.size(0);
    call.classes = logits.size(1);
    call.soft = to<bool>(stack[7]);
    call.alpha = to<double>(stack[8]);
    call.tau = to<double>(stack[9]);
    const bool numel = to<bool>(stack[10]);
    call.kl_scale = call.tau * call.tau / (numel ? static_cast<double>(call.classes) : 1.0);
    call.label_smoothing = to<double>(stack[11]);
    call.teacher_smoothing = to<double>(stack[12]);
    call.ignore_index = to<int64_t>(stack[13]);
    mean = to<bool>(stack[14]);

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
    require(!cls || target, "a base term has a target");
    require(!partner == !lam && (!partner || (target && target->dim() == 1)), "a mixed target has labels and lam");
    require(!teacher || teacher->scalar_type() != ScalarType::Long || call.soft == !!probs,
            "labels are a hard teacher, a TopK is a soft one");
  }

  // Whether the term with a gradient for a head is there.
  bool base() const { return tensor[0] && call.alpha < 1; }
  bool distill() const { return tensor[2] && call.alpha > 0; }

  // What `columns` is 0 for is a vector.
  bool has_shape(const Tensor& given, int64_t columns) const {
    return given.dim() == (columns ? 2 : 1) && given.size(0) == call.rows && (!columns || given.size(1) == columns);
  }

  Matrix matrix(const std::optional<Tensor>& given, int64_t columns) const {
    if (!given) return {};
    require(has_shape(*given, columns), "logits and probabilities are (B, C), lam is (B,)");
    const ScalarType type = given->scalar_type();
    require(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
                type == ScalarType::Double,
            "logits, probabilities and lam are floating-point");
    const Number number = type == ScalarType::Float      ? Number::float32
                          : type == ScalarType::Half     ? Number::float16
                          : type == ScalarType::BFloat16 ? Number::bfloat16
                                                         : Number::float64;
    return {given->const_data_ptr(), number, given->stride(0), columns ? given->stride(1) : 0};
  }

  Labels labels(const std::optional<Tensor>& given, int64_t columns) const {
    if (!given) return {};
    require(has_shape(*given, columns) && given->scalar_type() == ScalarType::Long, "labels are int64 (B,)");
    return {static_cast<const int64_t*>(given->const_data_ptr()), given->stride(0), columns ? given->stride(1) : 0};
  }

  ScalarType head_type(int index) const { return tensor[index]->scalar_type(); }

  // The stack as it was, for an op of the same schema.
  void put_back(Stack stack) const {
    for (int i = 0; i < tensors; ++i) stack[i] = from(tensor[i]);
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

void forward(Stack stack, uint64_t, uint64_t) {
  const Arguments given(stack);
  const LossCall& call = given.call;
  if (given.exact) {
    const std::string problem = cpu::problem_of(call);
    if (!problem.empty()) throw std::invalid_argument(problem);
    given.put_back(stack);
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("deit_kernels::_distill_loss_fwd_exact", "", stack, TORCH_ABI_VERSION));
    return;
  }
  const Tensor statistics = new_tensor({call.rows, statistics_columns}, ScalarType::Float);
  float* saved = floats(statistics);
  std::vector<Terms> terms(call.rows);
  std::vector<char> refused(call.rows);
  in_parallel(call, [&](int64_t begin, int64_t end) {
    if (begin < end) refused[begin] = !cpu::loss_forward(call, begin, end, terms.data(), saved);
  });
  if (std::find(refused.begin(), refused.end(), 1) != refused.end()) throw std::invalid_argument(cpu::problem_of(call));

  const Tensor loss = new_rows(given), base = new_rows(given), distill = new_rows(given);
  const Tensor count = given.mean ? new_tensor({}, ScalarType::Float) : new_tensor({0}, ScalarType::Float);
  if (given.mean) {
    Terms sum{0, 0};
    int64_t counted = 0;
    for (int64_t row = 0; row < call.rows; ++row) {
      sum.base += terms[row].base;
      sum.distill += terms[row].distill;
      counted += saved[row * statistics_columns + row_weight] != 0;
    }
    const Terms mean{sum.base / static_cast<double>(counted), sum.distill / static_cast<double>(counted)};
    *floats(loss) = weighted(mean, call.alpha);
    *floats(base) = static_cast<float>(mean.base);
    *floats(distill) = static_cast<float>(mean.distill);
    *floats(count) = static_cast<float>(counted);
  } else {
    for (int64_t row = 0; row < call.rows; ++row) {
      floats(loss)[row] = weighted(terms[row], call.alpha);
      floats(base)[row] = static_cast<float>(terms[row].base);
      floats(distill)[row] = static_cast<float>(terms[row].distill);
    }
  }
  const Tensor* results[] = {&loss, &base, &distill, &statistics, &count};
  for (int i = 0; i < 5; ++i) stack[i] = from(*results[i]);
}

void backward(Stack stack, uint64_t, uint64_t) {
  constexpr int before = 3;
  const Tensor grad = to<Tensor>(stack[0]), statistics = to<Tensor>(stack[1]), count = to<Tensor>(stack[2]);
  const Arguments given(stack + before);
  const LossCall& call = given.call;
  if (given.exact) {
    stack[0] = from(grad);
    stack[1] = from(statistics);
    stack[2] = from(count);
    given.put_back(stack + before);
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("deit_kernels::_distill_loss_bwd_exact", "", stack, TORCH_ABI_VERSION));
    return;
  }
  const bool need_cls = to<bool>(stack[before + Arguments::count]);
  const bool need_dist = to<bool>(stack[before + Arguments::count + 1]);
  require(statistics.scalar_type() == ScalarType::Float && statistics.is_contiguous() && statistics.dim() == 2 &&
              statistics.size(0) == call.rows && statistics.size(1) == statistics_columns,
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
  const Gradients results{need_cls ? grad_cls.mutable_data_ptr() : nullptr,
                          need_dist ? grad_dist.mutable_data_ptr() : nullptr,
                          static_cast<const float*>(grad.const_data_ptr()), given.mean ? 0 : grad.stride(0),
                          given.mean ? *static_cast<const float*>(count.const_data_ptr()) : 1.0f};
  const auto* saved = static_cast<const float*>(statistics.const_data_ptr());
  in_parallel(call, [&](int64_t begin, int64_t end) { cpu::loss_backward(call, begin, end, saved, results); });
  stack[0] = from(grad_cls);
  stack[1] = from(grad_dist);
}

}  // namespace
}  // namespace deit

STABLE_TORCH_LIBRARY_IMPL(deit_kernels, CPU, library) {
  library.impl("_distill_loss_fwd", &deit::forward);
  library.impl("_distill_loss_bwd", &deit::backward);
}
