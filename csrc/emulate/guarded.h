// What the programs of this folder write into, and the threads they start. Test-only.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <thread>
#include <vector>

namespace emulate {

// Memory between guard bytes, poisoned before use.
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

// body(i) for every number below count, a thread each.
template <typename Body>
void in_threads(int64_t count, const Body& body) {
  std::vector<std::thread> team;
  for (int64_t i = 0; i < count; ++i) team.emplace_back([&body, i] { body(i); });
  for (std::thread& member : team) member.join();
}

}  // namespace emulate
