// Poisoned memory between guard bytes, which must survive. Test-only.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <vector>

namespace emulate {

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

}  // namespace emulate
