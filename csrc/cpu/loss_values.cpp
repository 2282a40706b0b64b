// Says why the values of a call are refused, in the words of check_values of deit_kernels/distill_loss/checks.py.
//
// The passes over the rows have noticed that some value is refused; this finds which, in Python's order.
#include <algorithm>
#include <charconv>
#include <functional>
#include <limits>
#include <vector>

#include "../loss.h"
#include "number_rows.h"

namespace deit::cpu {
namespace {

std::string repr(int64_t number) { return std::to_string(number); }

// The fewest digits that give the number again, written as Python writes them.
std::string repr(double number) {
  if (number != number) return "nan";
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, number, std::chars_format::scientific).ptr;
  if (number - number != 0) return {text, end};  // inf, -inf
  std::string digits(text, end);
  const size_t e = digits.find('e');
  const int exponent = std::stoi(digits.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return digits;
  const auto fixed = std::to_chars(text, text + sizeof text, number, std::chars_format::fixed).ptr;
  digits.assign(text, fixed);
  return digits.find('.') == std::string::npos ? digits + ".0" : digits;
}

template <typename Tensor>
std::string repr_row(const Tensor& tensor, int64_t row, int64_t columns) {
  std::string text = "[";
  for (int64_t k = 0; k < columns; ++k) text += (k ? ", " : "") + repr(number_at(tensor, row, k));
  return text + "]";
}

bool within(double number) { return number >= 0 && number <= 1; }

}  // namespace

std::string problem_of_weight(const LossCall& call) {
  if (!call.weight.data) return "";
  bool any = false;
  for (int64_t c = 0; c < call.classes; ++c) {
    const double weight = number_at(call.weight, 0, c);
    if (!(weight >= 0 && weight <= std::numeric_limits<double>::max()))
      return "weight holds " + repr(weight) + " for class " + repr(c) + "; weights are finite and at least 0";
    any |= weight > 0;
  }
  return any ? "" : "weight holds 0 for every class; at least one is above 0";
}

std::string problem_of(const LossCall& call) {
  if (const std::string problem = problem_of_weight(call); !problem.empty()) return problem;
  const bool mixed = call.partner.data, listed = call.teacher_probs.data;
  const struct {
    const char* name;
    const Labels& labels;
  } labels[] = {{mixed ? "target.labels" : "target", call.labels},
                {"target.partner_labels", call.partner},
                {"teacher", listed ? Labels{} : call.teacher_labels}};
  const std::string classes = "[0, " + repr(call.classes) + ")";
  std::string text;

  // The first row that counts and is bad.
  const auto reject = [&](const std::string& name, const auto& shown, const auto& bad, const std::string& allowed) {
    for (int64_t row = 0; row < call.rows && text.empty(); ++row) {
      bool counts = true;
      for (const auto& each : labels)
        if (each.labels.data) counts &= number_at(each.labels, row) != call.ignore_index;
      if (counts && bad(row)) text = name + " holds " + shown(row) + " in row " + repr(row) + "; " + allowed;
    }
  };
  const auto outside = [&](int64_t label) { return label < 0 || label >= call.classes; };
  for (const auto& each : labels)
    if (each.labels.data)
      reject(each.name, [&](int64_t row) { return repr(number_at(each.labels, row)); },
             [&](int64_t row) { return outside(number_at(each.labels, row)); },
             "labels are in " + classes + " or ignore_index=" + repr(call.ignore_index));
  if (call.lam.data)
    reject("target.lam", [&](int64_t row) { return repr(number_at(call.lam, row)); },
           [&](int64_t row) { return !within(number_at(call.lam, row)); }, "it is a weight in [0, 1]");
  if (!listed) return text;

  std::vector<int64_t> sorted(call.listed);
  const auto sort_row = [&](int64_t row) {
    for (int64_t k = 0; k < call.listed; ++k) sorted[k] = number_at(call.teacher_labels, row, k);
    std::sort(sorted.begin(), sorted.end());
  };
  const auto indices = [&](int64_t row) { return repr_row(call.teacher_labels, row, call.listed); };
  reject("teacher.indices", indices,
         [&](int64_t row) { return sort_row(row), outside(sorted.front()) || outside(sorted.back()); },
         "classes are in " + classes);
  reject("teacher.indices", indices,
         [&](int64_t row) {
           sort_row(row);
           return std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
         },
         "a class may occur once a row");
  reject("teacher.probs", [&](int64_t row) { return repr_row(call.teacher_probs, row, call.listed); },
         [&](int64_t row) {
           bool good = true;
           for (int64_t k = 0; k < call.listed; ++k) good &= within(number_at(call.teacher_probs, row, k));
           return !good;
         },
         "probabilities are in [0, 1]");
  return text;
}

}  // namespace deit::cpu
