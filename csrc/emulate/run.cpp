// Runs the augmentation on a batch in a file, without Python or torch: run INPUT OUTPUT THREADS [LONE]. Test-only.
//
// THREADS is the size of an emulated CUDA block; 0 runs the CPU implementation, one thread an image. With LONE one block
// of so many threads runs the ops of an image, as on cards without clusters; without it, or with 0, a cluster does.
// INPUT: the header below, `count` plan rows, as many mix rows if the header says so, `data_bytes` pixels. OUTPUT: uint8
// images as cropped and resized, then the finished values. Both start poisoned and lie between guard bytes, which must
// survive.
#include "cuda_on_cpu.h"

#include <algorithm>
#include <string>

#include "../augment.h"
#include "../cuda/kernels.cuh"
#include "records.h"

namespace {

using emulate::Guarded;
using emulate::in_threads;

struct Header {
  int64_t count, data_bytes;
  int32_t size, mixed;
  deit::Finish finish;
};

void run_cpu(const deit::Batch& batch, const deit::Finish& finish, uint8_t* images, void* output) {
  deit::cpu::check_rows(batch);
  in_threads(batch.count, [&](int64_t i) { deit::cpu::resize(batch, i, i + 1, images); });
  if (!batch.mix)
    return in_threads(batch.count, [&](int64_t i) { deit::cpu::apply(batch, i, i + 1, finish, output); });
  const std::vector<int64_t> parts = deit::cpu::mixed_parts(batch);
  in_threads(static_cast<int64_t>(parts.size()),
             [&](int64_t i) { deit::cpu::apply_mixed(batch, parts.data(), i, i + 1, finish, output); });
}

template <deit::Type type>
void run_finish(const deit::Batch& batch, const deit::Finish& finish, const uint8_t* images, unsigned threads,
                void* output) {
  const deit::cuda::FinishBatch staged{images, batch.data_bytes, batch.rows, batch.mix, batch.count, batch.size,
                                        deit::Inverses(finish)};
  const unsigned parts = deit::cuda::divided_up(batch.size, deit::cuda::lines_of_part);
  const emulate::Dim grid{static_cast<unsigned>(batch.count), parts};
  emulate::launch(grid, threads, sizeof(deit::cuda::FinishShared), [&](unsigned char* shared) {
    deit::cuda::finish_block<type>(staged, finish, static_cast<typename deit::Element<type>::Bits*>(output), shared);
  });
}

void run_cuda(const deit::Batch& batch, const deit::Finish& finish, unsigned threads, unsigned lone, uint8_t* images,
              void* output) {
  const unsigned count = static_cast<unsigned>(batch.count);
  const deit::cuda::ResizeShape shape(batch.size);
  emulate::launch({count, static_cast<unsigned>(shape.parts())}, threads, shape.bytes, [&](unsigned char* shared) {
    deit::cuda::resize_block(batch.data, batch.data_bytes, batch.rows, shape, images, shared);
  });
  const size_t bytes = 3 * batch.count * size_t(batch.size) * batch.size;
  Guarded staged(bytes), scratch(4 * batch.count * deit::cuda::scratch_pixels(batch.size, batch.size));
  std::copy(images, images + bytes, staged.data());
  const auto plan_ops = [&](unsigned char* shared) {
    deit::cuda::plan_ops_block(batch.data_bytes, batch.rows, batch.size, staged.data(),
                               reinterpret_cast<uint32_t*>(scratch.data()), shared);
  };
  const unsigned parts = lone > 0 ? 1 : 2;  // blocks of an image; a card with clusters has ops_parts
  emulate::launch({count, parts}, lone > 0 ? lone : threads, sizeof(deit::cuda::OpsShared), plan_ops, true);
  staged.check("staged");
  scratch.check("scratch");
  using deit::Type;
  const auto run = finish.type == Type::float32   ? run_finish<Type::float32>
                   : finish.type == Type::float16 ? run_finish<Type::float16>
                                                  : run_finish<Type::bfloat16>;
  run(batch, finish, staged.data(), threads, output);
}

}  // namespace

int main(int given, char** arguments) {
  emulate::Reader input(arguments[1]);
  const unsigned threads = std::stoi(arguments[3]), lone = given > 4 ? std::stoi(arguments[4]) : 0;
  const auto header = input.one<Header>();
  const auto rows = input.many<deit::PlanRow>(header.count);
  const auto mix = input.many<deit::MixRow>(header.mixed ? header.count : 0);
  const auto data = input.many<uint8_t>(header.data_bytes);

  const size_t values = header.count * 3 * size_t(header.size) * header.size;
  Guarded images(values), output(values * (header.finish.type == deit::Type::float32 ? 4 : 2));
  const deit::Batch batch{data.data(), header.data_bytes, rows.data(), header.mixed ? mix.data() : nullptr,
                          header.count, header.size};
  if (threads == 0)
    run_cpu(batch, header.finish, images.data(), output.data());
  else
    run_cuda(batch, header.finish, threads, lone, images.data(), output.data());
  images.check("images");
  output.check("output");

  return emulate::Writer(arguments[2]).add(images).add(output).exit_code();
}
