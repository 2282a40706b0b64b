// Prints how augment.cu launches the kernels for images of SIZE x SIZE pixels: launches SIZE. Test-only.
//
// A line for each kernel: its name, the blocks of an image, threads and bytes of shared memory of a block, on cards that
// have clusters. The resize's line ends in the numbers of its ResizeShape, which is a parameter of the kernel, the ops'
// line in the words of scratch memory of an image.
#include "cuda_on_cpu.h"

#include <cstring>
#include <iostream>
#include <string>

#include "../cuda/kernels.cuh"

int main(int, char** arguments) {
  using namespace deit::cuda;
  const int32_t size = std::stoi(arguments[1]);
  const ResizeShape shape(size);
  int32_t words[sizeof shape / 4];
  std::memcpy(words, &shape, sizeof shape);
  std::cout << "resize " << shape.parts() << ' ' << threads << ' ' << shape.bytes;
  for (const int32_t word : words) std::cout << ' ' << word;
  std::cout << "\nplan_ops " << ops_parts << ' ' << threads << ' ' << sizeof(OpsShared) << ' '
            << scratch_pixels(size, size);
  std::cout << "\nfinish " << divided_up(size, lines_of_part) << ' ' << finish_threads << ' '
            << sizeof(FinishShared) << '\n';
}
