// Runs both CUDA kernels on a batch in a file and writes what they store: run INPUT OUTPUT THREADS. Test-only.
//
// INPUT: the header below, `count` plan rows, `data_bytes` pixels. OUTPUT: uint8 images, then the finished values. Both
// outputs start poisoned and lie between guard bytes, which must survive.
#include "cuda_on_cpu.h"

#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>

#include "../augment_kernels.cuh"

namespace {

struct Header {
  int64_t count, data_bytes;
  int32_t size;
  deit::Finish finish;
};

struct Guarded {
  static constexpr size_t guard = 64;
  explicit Guarded(size_t bytes) : bytes(bytes), memory(bytes + 2 * guard, 0xA5) {}
  uint8_t* data() { return memory.data() + guard; }
  void check(const char* name) const {
    for (size_t i = 0; i < guard; ++i)
      if (memory[i] != 0xA5 || memory[guard + bytes + i] != 0xA5) {
        std::cerr << name << ": a guard byte was overwritten\n";
        std::_Exit(4);
      }
  }
  size_t bytes;
  std::vector<uint8_t> memory;
};

template <deit::Type type>
void run_finish(const Header& header, const uint8_t* images, const deit::PlanRow* rows, unsigned threads, void* output) {
  emulate::launch({static_cast<unsigned>(header.count), 2}, threads, 0, [&](unsigned char*) {
    deit::cuda::finish_block<type>(images, header.data_bytes, rows, header.size, header.finish,
                                   static_cast<typename deit::Element<type>::Bits*>(output));
  });
}

}  // namespace

int main(int, char** arguments) {
  std::ifstream input(arguments[1], std::ios::binary);
  const unsigned threads = std::stoi(arguments[3]);
  Header header;
  input.read(reinterpret_cast<char*>(&header), sizeof header);
  std::vector<deit::PlanRow> rows(header.count);
  input.read(reinterpret_cast<char*>(rows.data()), header.count * sizeof(deit::PlanRow));
  std::vector<uint8_t> data(header.data_bytes);
  input.read(reinterpret_cast<char*>(data.data()), header.data_bytes);

  const size_t values = header.count * 3 * size_t(header.size) * header.size;
  const size_t element = header.finish.type == deit::Type::float32 ? 4 : 2;
  Guarded images(values), output(values * element);
  const deit::cuda::ResizeShared shape = deit::cuda::resize_shared(header.size);
  const unsigned bands = (header.size + shape.lines - 1) / shape.lines;
  emulate::launch({static_cast<unsigned>(header.count), bands}, threads, shape.bytes(), [&](unsigned char* shared) {
    deit::cuda::resize_block(data.data(), header.data_bytes, rows.data(), shape, images.data(), shared);
  });
  using deit::Type;
  const auto run = header.finish.type == Type::float32   ? run_finish<Type::float32>
                   : header.finish.type == Type::float16 ? run_finish<Type::float16>
                                                         : run_finish<Type::bfloat16>;
  run(header, images.data(), rows.data(), threads, output.data());
  images.check("resize");
  output.check("finish");

  std::ofstream result(arguments[2], std::ios::binary);
  result.write(reinterpret_cast<const char*>(images.data()), images.bytes);
  result.write(reinterpret_cast<const char*>(output.data()), output.bytes);
  return result ? 0 : 1;
}
