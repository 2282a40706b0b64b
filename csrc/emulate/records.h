// The files that the programs of this folder read and write: records one after another. Test-only.
#pragma once

#include <cstdint>
#include <fstream>
#include <vector>

#include "guarded.h"

namespace emulate {

class Reader {
 public:
  explicit Reader(const char* path) : input(path, std::ios::binary) {}

  template <typename Record>
  Record one() {
    Record record;
    to(&record, sizeof record);
    return record;
  }

  template <typename Record>
  std::vector<Record> many(int64_t count) {
    std::vector<Record> records(count);
    to(records.data(), count * sizeof(Record));
    return records;
  }

  void to(void* memory, size_t bytes) { input.read(static_cast<char*>(memory), static_cast<std::streamsize>(bytes)); }

 private:
  std::ifstream input;
};

class Writer {
 public:
  explicit Writer(const char* path) : output(path, std::ios::binary) {}

  Writer& add(Guarded& memory) { return add(memory.data(), memory.bytes); }

  template <typename Record>
  Writer& add(const std::vector<Record>& records) {
    return add(records.data(), records.size() * sizeof(Record));
  }

  // The program's, once everything has been added.
  int exit_code() const { return output ? 0 : 1; }

 private:
  Writer& add(const void* memory, size_t bytes) {
    output.write(static_cast<const char*>(memory), static_cast<std::streamsize>(bytes));
    return *this;
  }

  std::ofstream output;
};

}  // namespace emulate
