// Runs a CUDA kernel body on the CPU, one thread for each CUDA thread of a block, so that a machine without a GPU can
// check it, also under ThreadSanitizer and AddressSanitizer. Include it before the kernel bodies. Test-only.
//
//   launch({images, bands}, threads, shared_bytes, [&](unsigned char* shared) { resize_block(..., shared); });
//
// Blocks run one after another, but for those of a cluster: with `clusters`, the blocks (x, 0) to (x, grid.y - 1) run
// at the same time, and sync_cluster() is their barrier. Shared memory is poisoned before each block and is exactly as
// large as asked for. A barrier that not all threads of the block reach ends the program, and so does one that a thread
// keeps waiting for.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
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
    const unsigned round = round_.load(std::memory_order_acquire);
    if (arrive(place)) return;
    const auto patience = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    // Without the mutex: a thread that wakes late would take over, through it, what others have done since, and
    // ThreadSanitizer would not see that it ought to have waited for that.
    for (int look = 0; round_.load(std::memory_order_acquire) == round; ++look) {
      if (look < 100) {
        std::this_thread::yield();
      } else if (std::chrono::steady_clock::now() < patience) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      } else {
        std::fputs("a thread never came to the barrier where the others wait\n", stderr);
        std::_Exit(5);
      }
    }
  }

 private:
  // Whether this is the last thread, which lets the others go on.
  bool arrive(Place place) {
    std::lock_guard lock(mutex_);
    if (arrived_ > 0 && place != place_) {
      std::fputs("a barrier is not reached by all threads of the block\n", stderr);
      std::_Exit(3);
    }
    place_ = place;
    if (++arrived_ < threads_) return false;
    arrived_ = 0;
    round_.fetch_add(1, std::memory_order_release);
    return true;
  }

  std::mutex mutex_;
  std::atomic<unsigned> round_ = 0;
  const unsigned threads_;
  unsigned arrived_ = 0;
  Place place_ = Place::barrier;
};

inline thread_local Meeting *meeting = nullptr, *cluster_meeting = nullptr;

inline void sync_cluster() { cluster_meeting->wait(Meeting::Place::barrier); }

}  // namespace emulate

inline thread_local emulate::Dim threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulate::meeting->wait(emulate::Meeting::Place::barrier); }

template <typename Integer>
Integer atomicAdd(Integer* at, Integer value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

namespace emulate {

template <typename Kernel>
void launch(Dim grid, unsigned threads, size_t shared_bytes, const Kernel& kernel, bool clusters = false) {
  const unsigned together = clusters ? grid.y : 1;
  Meeting cluster(threads * together);
  std::deque<Meeting> blocks;
  for (unsigned part = 0; part < together; ++part) blocks.emplace_back(threads);
  std::vector<std::unique_ptr<unsigned char[]>> memory(together);
  std::vector<std::thread> team;
  for (unsigned number = 0; number < threads * together; ++number)
    team.emplace_back([&, thread = number % threads, part = number / threads] {
      auto& shared = memory[part];
      meeting = &blocks[part];
      cluster_meeting = &cluster;
      threadIdx = {thread, 0};
      blockDim = {threads, 1};
      gridDim = grid;
      for (unsigned y = part; y < grid.y; y += together)
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = {x, y};
          if (thread == 0) {
            shared.reset(new unsigned char[shared_bytes]);
            std::memset(shared.get(), 0xA5, shared_bytes);
          }
          meeting->wait(Meeting::Place::end);  // shared memory is ready
          kernel(shared.get());
          meeting->wait(Meeting::Place::end);  // and no longer used
          cluster.wait(Meeting::Place::end);
        }
    });
  for (std::thread& member : team) member.join();
}

}  // namespace emulate
