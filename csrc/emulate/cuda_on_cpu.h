// Runs a CUDA kernel body on the CPU, one thread for each CUDA thread of a block, so that a machine without a GPU can
// check it, also under ThreadSanitizer and AddressSanitizer. Include it before the kernel bodies. Test-only.
//
//   launch({images, bands}, threads, shared_bytes, [&](unsigned char* shared) { resize_block(..., shared); });
//
// Blocks run one after another. Shared memory is poisoned before each block and is exactly as large as asked for. A
// barrier that not all threads of the block reach ends the program.
#pragma once

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace emulate {

struct Dim {
  unsigned x = 1, y = 1;
};

// All threads of a block meet here, either in __syncthreads or at the end of the kernel, never some in each.
class Meeting {
 public:
  enum class Place { barrier, end };

  explicit Meeting(unsigned threads) : threads_(threads) {}

  void wait(Place place) {
    std::unique_lock lock(mutex_);
    if (arrived_ > 0 && place != place_) {
      std::fputs("a barrier is not reached by all threads of the block\n", stderr);
      std::_Exit(3);
    }
    place_ = place;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++round_;
      everyone_.notify_all();
    } else {
      everyone_.wait(lock, [&, round = round_] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable everyone_;
  const unsigned threads_;
  unsigned arrived_ = 0, round_ = 0;
  Place place_ = Place::barrier;
};

inline thread_local Meeting* meeting = nullptr;

}  // namespace emulate

inline thread_local emulate::Dim threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulate::meeting->wait(emulate::Meeting::Place::barrier); }

template <typename Integer>
Integer atomicAdd(Integer* at, Integer value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

namespace emulate {

template <typename Kernel>
void launch(Dim grid, unsigned threads, size_t shared_bytes, const Kernel& kernel) {
  Meeting block(threads);
  std::unique_ptr<unsigned char[]> shared;
  std::vector<std::thread> team;
  for (unsigned thread = 0; thread < threads; ++thread)
    team.emplace_back([&, thread] {
      meeting = &block;
      threadIdx = {thread, 0};
      blockDim = {threads, 1};
      gridDim = grid;
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = {x, y};
          if (thread == 0) {
            shared.reset(new unsigned char[shared_bytes]);
            std::memset(shared.get(), 0xA5, shared_bytes);
          }
          block.wait(Meeting::Place::end);  // shared memory is ready
          kernel(shared.get());
          block.wait(Meeting::Place::end);  // and no longer used
        }
    });
  for (std::thread& member : team) member.join();
}

}  // namespace emulate
