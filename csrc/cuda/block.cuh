// What the kernels share: how a block's threads divide work, and pixels as words of 4 bytes.
#pragma once

#include <cstdint>

#include "../arithmetic/host_device.h"

namespace deit::cuda {

// Threads of a block, as augment.cu launches them.
constexpr int threads = 256;

HOST_DEVICE constexpr int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
HOST_DEVICE constexpr int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
HOST_DEVICE constexpr int32_t divided_up(uint32_t count, uint32_t by) { return static_cast<int32_t>((count + by - 1) / by); }

// What the compiler does not find: one instruction each.
#ifdef __CUDA_ARCH__
DEVICE int32_t byte_of(uint32_t word, int index) { return static_cast<int32_t>(__byte_perm(word, 0, 0x4440 + index)); }
// The value, of which the compiler knows nothing: what follows from it is not worked out ahead of a loop or branch.
DEVICE int32_t hidden(int32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}
DEVICE int32_t cut_off(float value) { return __float2int_rz(value); }  // beyond int32 its end, of NaN 0
DEVICE float reciprocal(float value) { return __fdividef(1.0f, value); }  // to 2 units in the last place
DEVICE uint32_t packed(int32_t first, int32_t second, uint32_t upper) {  // two values clipped to a byte, and two bytes
  uint32_t word;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(second), "r"(first), "r"(upper));
  return word;
}
#else
DEVICE int32_t byte_of(uint32_t word, int index) { return static_cast<int32_t>(word >> (8 * index) & 255); }
DEVICE int32_t hidden(int32_t value) { return value; }
DEVICE int32_t cut_off(float value) {
  return static_cast<int32_t>(value > -1e9f ? (value < 1e9f ? value : 1e9f) : value < 0 ? -1e9f : 0.0f);
}
DEVICE float reciprocal(float value) { return 1.0f / value; }
DEVICE uint32_t packed(int32_t first, int32_t second, uint32_t upper) {
  const auto clipped = [](int32_t value) { return static_cast<uint32_t>(value < 0 ? 0 : value > 255 ? 255 : value); };
  return clipped(first) | clipped(second) << 8 | upper << 16;
}
#endif

// a / b of a thread's or block's number a, up to 2**12. a + 1/2 is at least 1/2 away from the next multiple of b, and the
// quotient errs by less than 2**-20 of itself, so it is never wrong. An integer division takes four times as long.
DEVICE int32_t quotient(int32_t a, int32_t b) {
  return static_cast<int32_t>((static_cast<float>(a) + 0.5f) * reciprocal(static_cast<float>(b)));
}

// This thread's number among its block's for the work that they divide. The first ones often have more to do; in which
// warps they are differs from block to block, so that a multiprocessor's four schedulers share it evenly.
DEVICE int32_t own_number() {
  const uint32_t turn = ((blockIdx.x >> 1) + blockIdx.y) * 32 & (blockDim.x - 1);
  return static_cast<int32_t>((blockDim.x & (blockDim.x - 1)) == 0 ? threadIdx.x ^ turn : threadIdx.x);
}

// Threads that divide work: those of a block, or those of the blocks (x, 0) to (x, gridDim.y - 1), which run at the same
// time and meet in sync(). At most 2**12.
struct Team {
  int32_t number, size;  // of this thread, and of them all

  DEVICE static Team of_block() { return {own_number(), static_cast<int32_t>(blockDim.x)}; }
  DEVICE static Team of_image() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return {static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockDim.x)};  // gridDim.y is 1
#else
    const int32_t threads = blockDim.x;
    return {static_cast<int32_t>(blockIdx.y) * threads + own_number(), static_cast<int32_t>(gridDim.y) * threads};
#endif
  }

  // A barrier for the threads of the blocks (x, 0) to (x, gridDim.y - 1); what one stored before, all read behind it.
  DEVICE static void sync() {
#ifndef __CUDACC__
    emulate::sync_cluster();
#elif __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#else
    __syncthreads();  // gridDim.y is 1
#endif
  }
};

// The cells of a grid of `columns` columns, row by row: thread i takes cell i and then every team.size-th.
struct Cells {
  int32_t columns, row, column, rows_on, columns_on;

  DEVICE explicit Cells(int32_t columns, const Team& team = Team::of_block())
      : columns(columns), row(quotient(team.number, columns)), column(team.number - row * columns),
        rows_on(quotient(team.size, columns)), columns_on(team.size - rows_on * columns) {}

  DEVICE void next() {
    row += rows_on;
    column += columns_on;
    if (column >= columns) {
      column -= columns;
      ++row;
    }
  }
};

// A row into shared memory, where all threads read it behind a barrier: from global memory its fields would come one by
// one, each when it is asked for.
template <typename Row>
DEVICE void copy_row(const Row* row, Row& shared) {
  static_assert(sizeof(Row) % sizeof(uint32_t) == 0);
  const auto* from = reinterpret_cast<const uint32_t*>(row);
  auto* to = reinterpret_cast<uint32_t*>(&shared);
  for (uint32_t i = threadIdx.x; i < sizeof(Row) / sizeof(uint32_t); i += blockDim.x) to[i] = from[i];
}

// A pixel in a word: red in the lowest byte, then green and blue; the highest byte may be anything.
DEVICE int32_t level_of(uint32_t pixel, int channel) { return byte_of(pixel, channel); }

HOST_DEVICE uint32_t pixel_of(uint32_t red, uint32_t green, uint32_t blue) { return red | green << 8 | blue << 16; }

HOST_DEVICE uint32_t pixel_at(const uint8_t* rgb) { return pixel_of(rgb[0], rgb[1], rgb[2]); }

// The word that begins `bytes` bytes, 0 to 3, after the beginning of `low`, whose next word is `high`.
HOST_DEVICE uint32_t word_between(uint32_t low, uint32_t high, uint32_t bytes) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (8 * bytes));
}

// Words for one access to memory.
struct alignas(8) Words2 {
  uint32_t word[2];
};
struct alignas(16) Words4 {
  uint32_t word[4];
};

// A word of global memory that nobody writes. The compiler does not know what memory a pointer from a structure is to.
DEVICE uint32_t load_global(const uint32_t* from) {
#ifdef __CUDA_ARCH__
  return __ldg(from);
#else
  return *from;
#endif
}

// One store of 16 bytes to global memory. The compiler would split it where it joins the two ends of a branch.
DEVICE void store_global(const Words4& words, void* to) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.word[0]),
               "r"(words.word[1]), "r"(words.word[2]), "r"(words.word[3])
               : "memory");
#else
  *static_cast<Words4*>(to) = words;
#endif
}

// The four pixels in 12 bytes.
HOST_DEVICE Words4 four_pixels(uint32_t first, uint32_t second, uint32_t third) {
  return {{first, word_between(first, second, 3), word_between(second, third, 2), third >> 8}};
}

}  // namespace deit::cuda
