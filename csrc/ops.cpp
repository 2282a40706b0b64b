// Binds the augmentation to the ops whose schemas deit_kernels/augment/op.py defines. This file and loss_ops.cpp are the
// two that know torch.
//
// Compiled twice: for `_C` it registers the CPU implementations, with DEIT_CUDA for `_C_cuda` the CUDA ones. Only the
// LibTorch stable ABI is used, so one binary serves every torch from 2.11 on. std::invalid_argument reaches Python as
// ValueError; it is thrown before a thread starts or a kernel is launched, never inside.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "augment.h"
#include "arithmetic/sample_mix.h"

namespace deit {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

Tensor new_tensor(const std::vector<int64_t>& shape, ScalarType type, const Tensor& like,
                  MemoryFormat order = MemoryFormat::Contiguous) {
  return torch::stable::empty(shape, type, std::nullopt, like.device(), std::nullopt, order);
}

void require_rows(const Tensor& rows) {
  require(rows.scalar_type() == ScalarType::Byte && rows.dim() == 2 && rows.is_contiguous() &&
              rows.size(1) == static_cast<int64_t>(sizeof(PlanRow)),
          "a plan's rows are contiguous uint8 (B, " + std::to_string(sizeof(PlanRow)) +
              "); if they come from sample_plan, the extension is older than the Python code: pip install -e ./kernels");
}

int32_t require_size(int64_t size) {
  require(size >= 1 && size <= max_output, "size is a side from 1 to " + std::to_string(max_output) + " pixels");
  return static_cast<int32_t>(size);
}

void require_beside(const Tensor& table, const Tensor& pixels, const std::string& what) {
  require(table.is_cuda() == pixels.is_cuda() && table.get_device_index() == pixels.get_device_index(),
          "the pixels and " + what + " are on one device");
}

// Contiguous uint8 (count, bytes of a Row), on the device of the pixels.
template <typename Row>
const Row* require_table(const Tensor& table, int64_t count, const Tensor& pixels, const std::string& what) {
  require(table.scalar_type() == ScalarType::Byte && table.dim() == 2 && table.is_contiguous() &&
              table.size(0) == count && table.size(1) == static_cast<int64_t>(sizeof(Row)),
          what + " are contiguous uint8 (" + std::to_string(count) + ", " + std::to_string(sizeof(Row)) + ")");
  require_beside(table, pixels, what);
  const auto* row = static_cast<const Row*>(table.const_data_ptr());
  require(!table.is_cuda() || reinterpret_cast<uintptr_t>(row) % alignof(Row) == 0,
          what + " on a device start at a multiple of 8 bytes");
  return row;
}

Batch read_batch(const Tensor& data, const Tensor& rows, const std::optional<Tensor>& mix, int64_t size) {
  require_rows(rows);
  require(data.scalar_type() == ScalarType::Byte && data.dim() == 1 && data.is_contiguous(),
          "the pixels are contiguous uint8 (bytes,)");
  const int64_t count = rows.size(0);
  return {static_cast<const uint8_t*>(data.const_data_ptr()), data.numel(),
          require_table<PlanRow>(rows, count, data, "the plan's rows"),
          mix ? require_table<MixRow>(*mix, count, data, "the rows of mix") : nullptr, count, require_size(size)};
}

Finish read_finish(const std::vector<double>& mean, const std::vector<double>& std, ScalarType type,
                   const std::string& layout, int64_t size, int64_t patch) {
  Finish finish{};
  require(mean.size() == 3 && std.size() == 3, "mean and std have 3 channels");
  for (int c = 0; c < 3; ++c) {
    finish.mean[c] = static_cast<float>(mean[c]);
    finish.std[c] = static_cast<float>(std[c]);
  }
  require(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
          "the output is float32, float16 or bfloat16");
  finish.type = type == ScalarType::Float ? Type::float32 : type == ScalarType::Half ? Type::float16 : Type::bfloat16;
  require(layout == "nchw" || layout == "channels_last" || layout == "patches",
          "layout is nchw, channels_last or patches, got " + layout);
  finish.layout = layout == "nchw" ? Layout::nchw : layout == "patches" ? Layout::patches : Layout::channels_last;
  require(finish.layout != Layout::patches || (patch >= 1 && size % patch == 0), "patch divides the output's side");
  finish.patch = static_cast<int32_t>(patch);
  return finish;
}

Tensor new_output(const Tensor& data, const Batch& batch, ScalarType type, const Finish& finish) {
  const int64_t size = batch.size, patch = finish.patch;
  if (finish.layout == Layout::patches)
    return new_tensor({batch.count, (size / patch) * (size / patch), 3 * patch * patch}, type, data);
  return new_tensor({batch.count, 3, size, size}, type, data,
                    finish.layout == Layout::nchw ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
}

#ifndef DEIT_CUDA

template <typename Body>
void in_parallel(int64_t count, const Body& body) {
  torch::stable::parallel_for(0, count, 1, body);
}

void resize_into(const Tensor&, const Batch& batch, uint8_t* images) {
  cpu::check_rows(batch);
  in_parallel(batch.count, [&](int64_t begin, int64_t end) { cpu::resize(batch, begin, end, images); });
}

void run_ops_in(const Tensor&, const OpBatch& batch) {
  cpu::check_calls(batch);
  in_parallel(batch.count, [&](int64_t begin, int64_t end) { cpu::run_ops(batch, begin, end); });
}

void apply_into(const Tensor&, const Batch& batch, const Finish& finish, void* output) {
  cpu::check_rows(batch);
  if (!batch.mix)
    return in_parallel(batch.count,
                       [&](int64_t begin, int64_t end) { cpu::apply(batch, begin, end, finish, output); });
  const std::vector<int64_t> parts = cpu::mixed_parts(batch);
  in_parallel(static_cast<int64_t>(parts.size()), [&](int64_t begin, int64_t end) {
    cpu::apply_mixed(batch, parts.data(), begin, end, finish, output);
  });
}

// What rows are drawn from: Policy or MixPolicy, which the function `origin` of Python makes.
template <typename Numbers>
Numbers read_numbers(const Tensor& bytes, const std::string& what, const std::string& origin) {
  Numbers numbers;
  require(bytes.scalar_type() == ScalarType::Byte && bytes.is_contiguous() &&
              bytes.numel() == static_cast<int64_t>(sizeof numbers),
          "a " + what + " is contiguous uint8 (" + std::to_string(sizeof numbers) + ",); if it comes from " + origin +
              ", the extension is older than the Python code: pip install -e ./kernels");
  std::memcpy(&numbers, bytes.const_data_ptr(), sizeof numbers);
  require(is_good(numbers), "a number of the " + what + " is outside its range");
  return numbers;
}

Tensor sample_plan(const Tensor& keys, const Tensor& numbers) {
  require(keys.scalar_type() == ScalarType::Long && keys.dim() == 2 && keys.size(1) == 5 && keys.is_contiguous(),
          "keys are contiguous int64 (B, 5): epoch, sample, copy, height, width");
  const auto policy = read_numbers<Policy>(numbers, "policy", "sample_plan");
  const int64_t count = keys.size(0);
  const Tensor rows = new_tensor({count, static_cast<int64_t>(sizeof(PlanRow))}, ScalarType::Byte, keys);
  const auto* key = static_cast<const ImageKey*>(keys.const_data_ptr());
  auto* row = static_cast<uint8_t*>(rows.mutable_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    const PlanRow drawn = sample_row(policy, key[i]);
    std::memcpy(row + i * sizeof(PlanRow), &drawn, sizeof drawn);
  }
  return rows;
}

Tensor sample_mix(const Tensor& numbers, int64_t count) {
  const auto policy = read_numbers<MixPolicy>(numbers, "mix", "sample_mix");
  const int64_t group = policy.group, first = policy.start / group;
  require(count >= 0 && count % group == 0, "count is a multiple of the mix group");
  const Tensor rows = new_tensor({count, static_cast<int64_t>(sizeof(MixRow))}, ScalarType::Byte, numbers);
  auto* to = static_cast<uint8_t*>(rows.mutable_data_ptr());
  for (int64_t begin = 0; begin < count; begin += group) {
    MixRow row = sample_mix_group(policy, static_cast<uint32_t>(first + begin / group));
    for (int64_t i = 0; i < group; ++i, to += sizeof row) {
      const int64_t other = row.mode == Mode::none ? i : (i + group / 2) % group;
      row.partner = static_cast<int32_t>(begin + other);
      std::memcpy(to, &row, sizeof row);
    }
  }
  return rows;
}

Tensor check_mix(const Tensor& mix, int64_t size) {
  const int64_t count = mix.dim() == 2 ? mix.size(0) : 0;
  cpu::check_mix(require_table<MixRow>(mix, count, mix, "the rows of mix"), count, require_size(size));
  return torch::stable::clone(mix);
}

// The rows in the order of their ops' costs.
void set_order(PlanRow* rows, int64_t count) {
  if (count > UINT16_MAX) return;
  std::vector<int32_t> cost(count), order(count);
  for (int64_t i = 0; i < count; ++i)
    for (const OpCall& call : rows[i].ops) cost[i] += op_cost[static_cast<int>(call.op)];
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return cost[a] > cost[b]; });
  for (int64_t i = 0; i < count; ++i) {
    rows[i].order = static_cast<uint16_t>(order[i]);
    rows[order[i]].turn = static_cast<uint16_t>(i);
  }
}

Tensor place(const Tensor& rows, const Tensor& offset, const Tensor& height, const Tensor& width, int64_t data_bytes,
             int64_t size) {
  require_rows(rows);
  const int64_t count = rows.size(0);
  require(offset.scalar_type() == ScalarType::Long && height.scalar_type() == ScalarType::Int &&
              width.scalar_type() == ScalarType::Int,
          "offset is int64, height and width are int32");
  for (const Tensor* table : {&offset, &height, &width})
    require(table->numel() == count && table->is_contiguous(), "offset, height and width have one entry for each row");
  const Tensor placed = torch::stable::clone(rows);
  auto* bytes = static_cast<uint8_t*>(placed.mutable_data_ptr());
  const auto* offsets = static_cast<const int64_t*>(offset.const_data_ptr());
  const auto* heights = static_cast<const int32_t*>(height.const_data_ptr());
  const auto* widths = static_cast<const int32_t*>(width.const_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    PlanRow row;
    std::memcpy(&row, bytes + i * sizeof row, sizeof row);
    require(row.height == heights[i] && row.width == widths[i],
            "row " + std::to_string(i) + ": the plan was drawn for an image of " + std::to_string(row.height) + " x " +
                std::to_string(row.width) + ", the batch holds one of " + std::to_string(heights[i]) + " x " +
                std::to_string(widths[i]));
    row.offset = offsets[i];
    std::memcpy(bytes + i * sizeof row, &row, sizeof row);
  }
  cpu::check_rows({nullptr, data_bytes, reinterpret_cast<const PlanRow*>(bytes), nullptr, count, require_size(size)});
  set_order(reinterpret_cast<PlanRow*>(bytes), count);
  return placed;
}

#else

// The current stream of the tensor's device, which becomes the current device for as long as this lives.
struct OnDevice {
  explicit OnDevice(const Tensor& tensor) : guard(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  }
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};

Tensor new_scratch(const Tensor& like, int64_t count, int64_t height, int64_t width) {
  return new_tensor({count, cuda::scratch_pixels(height, width)}, ScalarType::Int, like);
}

void resize_into(const Tensor& data, const Batch& batch, uint8_t* images) {
  const OnDevice device(data);
  cuda::resize(batch, images, device.stream);
}

void run_ops_in(const Tensor& images, const OpBatch& batch) {
  const OnDevice device(images);
  const Tensor scratch = new_scratch(images, batch.count, batch.height, batch.width);
  cuda::run_ops(batch, static_cast<uint32_t*>(scratch.mutable_data_ptr()), device.stream);
}

void apply_into(const Tensor& data, const Batch& batch, const Finish& finish, void* output) {
  const OnDevice device(data);
  const Tensor staged = new_tensor({batch.count, batch.size, batch.size, 3}, ScalarType::Byte, data);
  const Tensor scratch = new_scratch(data, batch.count, batch.size, batch.size);
  auto* images = static_cast<uint8_t*>(staged.mutable_data_ptr());
  cuda::resize(batch, images, device.stream);
  cuda::run_plan_ops(batch, images, static_cast<uint32_t*>(scratch.mutable_data_ptr()), device.stream);
  cuda::finish(batch, images, finish, output, device.stream);
}

#endif

Tensor resize(const Tensor& data, const Tensor& rows, int64_t size) {
  const Batch batch = read_batch(data, rows, std::nullopt, size);
  const Tensor images = new_tensor({batch.count, size, size, 3}, ScalarType::Byte, data);
  resize_into(data, batch, static_cast<uint8_t*>(images.mutable_data_ptr()));
  return images;
}

Tensor run_op(const Tensor& images, const Tensor& calls) {
  require(images.scalar_type() == ScalarType::Byte && images.dim() == 4 && images.size(3) == 3 &&
              images.is_contiguous(),
          "images are contiguous uint8 (B, H, W, 3)");
  const int64_t count = images.size(0), height = images.size(1), width = images.size(2);
  require(height >= 1 && width >= 1 && height <= max_side && width <= max_side,
          "an image's sides lie in [1, 2**24 - 1]");
  const auto* call = require_table<OpCall>(calls, count, images, "the calls");
  const Tensor result = torch::stable::clone(images);
  run_ops_in(result, {static_cast<uint8_t*>(result.mutable_data_ptr()), call, count, static_cast<int32_t>(height),
                      static_cast<int32_t>(width)});
  return result;
}

Tensor apply(const Tensor& data, const Tensor& rows, const std::optional<Tensor>& mix, int64_t size,
             const std::vector<double>& mean, const std::vector<double>& std, ScalarType dtype,
             const std::string& layout, int64_t patch) {
  const Batch batch = read_batch(data, rows, mix, size);
  const Finish finish = read_finish(mean, std, dtype, layout, size, patch);
  const Tensor output = new_output(data, batch, dtype, finish);
  apply_into(data, batch, finish, output.mutable_data_ptr());
  return output;
}

bool is_laid_out(const Tensor& out, const Batch& batch, const Finish& finish) {
  const int64_t size = batch.size;
  if (out.numel() != 3 * batch.count * size * size) return false;
  if (finish.layout != Layout::channels_last) return out.is_contiguous();
  return out.dim() == 4 && out.stride(0) == 3 * size * size && out.stride(1) == 1 && out.stride(2) == 3 * size &&
         out.stride(3) == 3;
}

void apply_out(const Tensor& data, const Tensor& rows, const std::optional<Tensor>& mix, int64_t size,
               const std::vector<double>& mean, const std::vector<double>& std, const std::string& layout,
               int64_t patch, const Tensor& out) {
  const Batch batch = read_batch(data, rows, mix, size);
  const Finish finish = read_finish(mean, std, out.scalar_type(), layout, size, patch);
  require(is_laid_out(out, batch, finish), "out has the shape and strides of what apply returns");
  apply_into(data, batch, finish, out.mutable_data_ptr());
}

}  // namespace
}  // namespace deit

#ifndef DEIT_CUDA
STABLE_TORCH_LIBRARY_IMPL(deit_kernels, CPU, library) {
  library.impl("_augment_sample_plan", TORCH_BOX(&deit::sample_plan));
  library.impl("_augment_sample_mix", TORCH_BOX(&deit::sample_mix));
  library.impl("_augment_place", TORCH_BOX(&deit::place));
  library.impl("_augment_check_mix", TORCH_BOX(&deit::check_mix));
#else
STABLE_TORCH_LIBRARY_IMPL(deit_kernels, CUDA, library) {
#endif
  library.impl("_augment_op", TORCH_BOX(&deit::run_op));
  library.impl("_augment_resize", TORCH_BOX(&deit::resize));
  library.impl("_augment_apply", TORCH_BOX(&deit::apply));
  library.impl("_augment_apply_out", TORCH_BOX(&deit::apply_out));
}
