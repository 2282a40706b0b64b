// Applies an op to each image of a file by the CUDA code, without Python or torch: ops INPUT OUTPUT THREADS PARTS.
// Test-only.
//
// PARTS is the number of blocks of an image. INPUT: the header below, `count` calls, as many images of height x width.
// OUTPUT: the images, then for each the number of pixels (int64) that an exact affine op cannot make in integers.
#include "cuda_on_cpu.h"
#include "records.h"

#include <cstdint>
#include <string>

#include "../cuda/kernels.cuh"

namespace {

struct Header {
  int64_t count;
  int32_t height, width;
};

bool is_exact_affine(const deit::OpCall& call) {
  return deit::is_affine(call.op) && !call.fast;
}

int64_t uncertain_pixels(const deit::OpCall& call, const deit::cuda::Groups& source, const uint8_t* image) {
  using namespace deit;
  const auto filter = static_cast<Filter>(call.filter);
  const cuda::FixedAffine fixed = cuda::fixed_affine(call.matrix, filter, source.height, source.width);
  int64_t uncertain = 0;
  emulate::launch({1, 1}, 1, 1, [&](unsigned char*) {
    source.fill(image);
    for (int32_t y = 0; y < source.height; ++y)
      for (int32_t x = 0; x < source.width; ++x)
        uncertain += !fixed.usable || !cuda::fixed_pixel(fixed, source, filter, 0, y, x).certain;
  });
  return uncertain;
}

}  // namespace

int main(int, char** arguments) {
  emulate::Reader input(arguments[1]);
  const unsigned threads = std::stoi(arguments[3]), parts = std::stoi(arguments[4]);
  const auto header = input.one<Header>();
  const int64_t image_bytes = 3 * int64_t{header.height} * header.width;
  const int64_t scratch_bytes = 4 * deit::cuda::scratch_pixels(header.height, header.width);
  const auto calls = input.many<deit::OpCall>(header.count);
  emulate::Guarded images(header.count * image_bytes), scratch(header.count * scratch_bytes);
  input.to(images.data(), images.bytes);
  auto* words = reinterpret_cast<uint32_t*>(scratch.data());

  std::vector<int64_t> uncertain(header.count);
  for (int64_t i = 0; i < header.count; ++i)
    if (is_exact_affine(calls[i]))
      uncertain[i] = uncertain_pixels(calls[i], {words, header.height, header.width}, images.data() + i * image_bytes);
  const emulate::Dim grid{static_cast<unsigned>(header.count), parts};
  const auto ops = [&](unsigned char* shared) {
    deit::cuda::ops_block(calls.data(), header.height, header.width, images.data(), words, shared);
  };
  emulate::launch(grid, threads, sizeof(deit::cuda::OpsShared), ops, true);
  images.check("images");
  scratch.check("scratch");

  return emulate::Writer(arguments[2]).add(images).add(uncertain).exit_code();
}
