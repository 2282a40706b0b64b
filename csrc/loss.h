// What loss_ops.cpp calls: the losses on the CPU (cpu/loss.cpp). No torch on this side.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace deit {

enum class Number { float32, float16, bfloat16, float64 };

// A tensor where it lies; strides count elements. `data` is null where a call has no such tensor.
struct Matrix {
  const void* data;
  Number type;
  int64_t row, column;  // strides; a vector's column is 0
};
struct Labels {
  const int64_t* data;
  int64_t row, column;
};

// The fields of LossCall in deit_kernels/distill_loss/reference.py, where they are explained; what is one tensor of
// several kinds there is one field for each kind here. Heads are float32, float16 or bfloat16.
struct LossCall {
  int64_t rows, classes, listed;  // `listed`: K of a TopK
  Matrix cls, dist;
  Matrix teacher;         // logits
  Labels teacher_labels;  // (B,), or the classes (B, K) of a TopK
  Matrix teacher_probs;   // (B, K)
  Labels labels, partner;
  Matrix lam;
  Matrix dense;   // probabilities (B, C)
  Matrix weight;  // of the classes, as a row
  bool soft, numel;
  double alpha, tau, label_smoothing, teacher_smoothing;
  int64_t ignore_index;
  bool binary, sum_classes;
  std::optional<double> target_threshold;

  const Matrix& student() const { return dist.data ? dist : cls; }
  bool distills() const { return teacher.data || teacher_labels.data; }
  bool divides_by_weights() const { return weight.data && !binary && labels.data; }
  int64_t columns() const;  // of the statistics
  double base_scale() const { return binary && !sum_classes ? 1 / static_cast<double>(classes) : 1; }
  double kl_scale() const { return numel ? tau * tau / static_cast<double>(classes) : tau * tau; }
};

// The columns that reference.py names.
constexpr int64_t statistics_columns = 8;
enum Column { cls_max, cls_rest, dist_max, dist_rest, teacher_max, teacher_rest, target_sum, row_weight, target_weight };
constexpr Column teacher_label = teacher_max;
inline int64_t LossCall::columns() const { return statistics_columns + (weight.data != nullptr); }

// Both terms of a row, 0 where it is ignored.
struct Terms {
  double base, distill;
};

// Where the gradients go: contiguous (B, C) of the heads' types. `data` is null for a head without one.
struct Gradients {
  void *cls, *dist;
  const float* incoming;
  int64_t stride;  // of `incoming`
  float count;     // what `incoming` is divided by
};

namespace cpu {

// Why the values of a call are refused: check_values of deit_kernels/distill_loss/checks.py, word for word. "" where
// they are good.
std::string problem_of(const LossCall& call);
std::string problem_of_weight(const LossCall& call);  // of its values alone

// Rows [begin, end): terms[row] and the row's statistics. False where the values of a row are refused; such a row is not
// read further. Many threads call these at once.
bool loss_forward(const LossCall& call, int64_t begin, int64_t end, Terms* terms, float* statistics);
void loss_backward(const LossCall& call, int64_t begin, int64_t end, const float* statistics, const Gradients& to);

}  // namespace cpu
}  // namespace deit
