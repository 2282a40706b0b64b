// The stages of the CPU implementation, one image at a time; augment.cpp strings them together.
#pragma once

#include <cstdint>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "../arithmetic/mix.h"
#include "../arithmetic/normalise.h"
#include "../arithmetic/plan.h"

// The loops are compiled once for each instruction set and chosen when the binary loads; all give the same integers.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(DEIT_NO_CLONES)
#define VECTOR_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define VECTOR_CLONES
#endif
// Where compilers do not find the instruction that makes a loop several times as fast, it is written a second time by
// intrinsics: dot products of bytes (VNNI), look-ups of bytes in registers (VBMI). Servers have both from Ice Lake and
// Zen 4 on. Again the integers are the same.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(DEIT_NO_AVX512)
#define DEIT_AVX512
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))
#endif
#define INTO_CLONE inline __attribute__((always_inline))  // so that the code is compiled for the clone that calls it

namespace deit::cpu {

constexpr int64_t channels = 3;

#ifdef DEIT_AVX512
inline const bool has_avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                               __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#endif

// Memory that a thread keeps from image to image.
inline uint8_t* at_least(std::vector<uint8_t>& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size()) < bytes) buffer.resize(bytes);
  return buffer.data();
}

// What the levels of an image still have to become. Ops that are tables are joined here and cost no pass of their own:
// the table of the last stage takes them in.
struct Tables {
  uint8_t level[3][256];
  bool identity;
};
const Tables& identity_tables();

// Crop, horizontal pass, vertical pass, flip: size x size pixels.
void resize_image(const uint8_t* data, const PlanRow& row, int32_t size, uint8_t* image);

// `count` ops in place; what is left to do is in `tables`.
void run_ops(uint8_t* image, int32_t height, int32_t width, const OpCall* calls, int count, Tables& tables);
void run_affine(uint8_t* image, int32_t height, int32_t width, const OpCall& call);
void run_blur(uint8_t* image, int32_t height, int32_t width, const OpCall& call);
uint64_t gray_sum(const uint8_t* image, int64_t pixels);
void blend_with_gray(uint8_t* image, int64_t pixels, float factor);
void apply_tables(uint8_t* image, int64_t pixels, Tables& tables);

// What the last stage reads of one image.
struct Staged {
  const uint8_t* image;
  const Tables* tables;
  const PlanRow* row;
};

// The values of every level of each channel, [3][256], before rounding to the output's type.
struct LevelValues {
  float value[3][256];
};
LevelValues level_values(const Finish& finish);

// One image of the output; `partner` and `mix` may be null together. `past_caches`: a hint that the output is too large
// for them, so that it need not be read before it is written; `finish_past_caches` completes it.
void finish_image(const Staged& own, const Staged* partner, const MixRow* mix, int32_t size, const LevelValues& values,
                  const Finish& finish, bool past_caches, void* output);
void finish_past_caches();

}  // namespace deit::cpu
