// Applies one function of arithmetic/*.h to every record of stdin: arithmetic NAME. Test-only.
//
// philox reads {uint64 seed; uint32 stream, c0, c1, c2, c3, unused} and writes four uint32; exp and log map float64 to
// float64, sincos to two; normals maps two uint32 to two float64, noise to two float32; half and bfloat16 map float32 to
// uint16; exact maps {float32 mean[3], std[3]} to int32, whether normalising without divisions has the same bits.
#include <cstdio>
#include <string>

#include "../arithmetic/exact_math.h"
#include "../arithmetic/noise.h"
#include "../arithmetic/normalise.h"
#include "../arithmetic/philox.h"

template <typename In, typename Out>
void map_records(Out (*function)(In)) {
  for (In record; std::fread(&record, sizeof record, 1, stdin) == 1;) {
    const Out result = function(record);
    std::fwrite(&result, sizeof result, 1, stdout);
  }
}

struct Call {
  uint64_t seed;
  uint32_t stream, c0, c1, c2, c3, unused;
};

struct WordPair {
  uint32_t radius, angle;
};

struct MeanStd {
  float mean[3], std[3];
};

int main(int, char** arguments) {
  const std::string name = arguments[1];
  if (name == "philox")
    map_records<Call, deit::Words>([](Call call) {
      return deit::philox(call.seed, static_cast<deit::Stream>(call.stream), call.c0, call.c1, call.c2, call.c3);
    });
  if (name == "exp") map_records(deit::exact_exp);
  if (name == "log") map_records(deit::exact_log);
  if (name == "sincos") map_records(deit::exact_sin_cos);
  if (name == "normals")
    map_records<WordPair, deit::Normals>([](WordPair words) { return deit::normals(words.radius, words.angle); });
  if (name == "noise")
    map_records<WordPair, deit::NoisePair>([](WordPair words) { return deit::noise_pair(words.radius, words.angle); });
  if (name == "exact")
    map_records<MeanStd, int32_t>([](MeanStd of) {
      const deit::Finish finish{{of.mean[0], of.mean[1], of.mean[2]}, {of.std[0], of.std[1], of.std[2]}, {}, {}, 0};
      return deit::Inverses(finish).exact;
    });
  if (name == "half") map_records(deit::float16_bits);
  if (name == "bfloat16") map_records(deit::bfloat16_bits);
}
