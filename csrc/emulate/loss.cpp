// Runs the losses on a call in a file, without Python or torch: loss INPUT OUTPUT. Test-only.
//
// INPUT: the header below; ten times a Given and its bytes, in the order of `read_call`; one incoming gradient a row,
// float32. OUTPUT: the terms of the rows, their statistics, the gradients of the heads that are there. A
// thread computes each row. Gradients start poisoned and lie between guard bytes, which must survive; a tensor has
// exactly its bytes, so that a sanitizer sees who reads beyond. Refused values are named on stderr, with exit code 3.
#include <atomic>
#include <list>

#include "../loss.h"
#include "records.h"

namespace {

using emulate::Guarded;
using emulate::in_threads;

struct Header {
  int64_t rows, classes, listed, ignore_index;
  double alpha, tau, label_smoothing, teacher_smoothing, target_threshold;
  int32_t soft, numel, binary, sum_classes, thresholded, unused;
};

struct Given {
  int64_t bytes, row, column;
  int32_t type, present;
};

// What a call points to lives as long as this.
class Tensors : public emulate::Reader {
 public:
  using emulate::Reader::Reader;

  const void* bytes(int64_t count) { return memory.emplace_back(many<uint8_t>(count)).data(); }

  deit::Matrix matrix() {
    const auto given = one<Given>();
    const void* data = bytes(given.bytes);
    return {given.present ? data : nullptr, static_cast<deit::Number>(given.type), given.row, given.column};
  }

  deit::Labels labels() {
    const deit::Matrix given = matrix();
    return {static_cast<const int64_t*>(given.data), given.row, given.column};
  }

 private:
  std::list<std::vector<uint8_t>> memory;
};

deit::LossCall read_call(Tensors& from) {
  const auto header = from.one<Header>();
  deit::LossCall call{};
  call.rows = header.rows;
  call.classes = header.classes;
  call.listed = header.listed;
  call.ignore_index = header.ignore_index;
  call.alpha = header.alpha;
  call.tau = header.tau;
  call.label_smoothing = header.label_smoothing;
  call.teacher_smoothing = header.teacher_smoothing;
  call.soft = header.soft;
  call.numel = header.numel;
  call.binary = header.binary;
  call.sum_classes = header.sum_classes;
  if (header.thresholded) call.target_threshold = header.target_threshold;
  call.cls = from.matrix();
  call.dist = from.matrix();
  call.teacher = from.matrix();
  call.teacher_labels = from.labels();
  call.teacher_probs = from.matrix();
  call.labels = from.labels();
  call.partner = from.labels();
  call.lam = from.matrix();
  call.dense = from.matrix();
  call.weight = from.matrix();
  return call;
}

size_t bytes_of(const deit::LossCall& call, const deit::Matrix& head) {
  if (!head.data) return 0;
  return call.rows * call.classes * (head.type == deit::Number::float32 ? 4 : 2);
}

}  // namespace

int main(int, char** arguments) {
  Tensors input(arguments[1]);
  const deit::LossCall call = read_call(input);
  const auto* incoming = static_cast<const float*>(input.bytes(call.rows * sizeof(float)));
  Guarded cls(bytes_of(call, call.cls)), dist(bytes_of(call, call.dist));

  std::vector<deit::Terms> found(call.rows);
  std::vector<float> saved(call.rows * call.columns());
  std::atomic<bool> good = true;
  in_threads(call.rows, [&](int64_t row) {
    if (!deit::cpu::loss_forward(call, row, row + 1, found.data(), saved.data())) good = false;
  });
  if (!good) {
    std::cerr << deit::cpu::problem_of(call);
    return 3;
  }
  const deit::Gradients to{call.cls.data ? cls.data() : nullptr, call.dist.data ? dist.data() : nullptr, incoming, 1, 1};
  in_threads(call.rows, [&](int64_t row) { deit::cpu::loss_backward(call, row, row + 1, saved.data(), to); });
  cls.check("cls");
  dist.check("dist");

  return emulate::Writer(arguments[2]).add(found).add(saved).add(cls).add(dist).exit_code();
}
