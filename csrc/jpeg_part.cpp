// The part of a JPEG file that augmentation is going to read, by libjpeg-turbo's own partial decoding: blocks beside
// and above the part are entropy-decoded only, lines below it not at all. A plain C interface, without torch or Python;
// deit_fast/data/jpeg_part.py calls it.
//
// Settings are Pillow's (slow integer DCT, smooth chroma), so pixels are too, but for the first and the last column of
// a part that begins or ends inside the image: smooth chroma would read one pixel more.
#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>  // jpeglib.h uses FILE
#include <cstring>

#include <jpeglib.h>

#include "arithmetic/sample.h"

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001005
#error "libjpeg-turbo 2.1.5 or later is needed: the oldest whose parts were compared with whole images"
#endif

namespace {

constexpr int channels = 3;

struct Errors {
  jpeg_error_mgr manager;
  std::jmp_buf back;
};

void jump_back(j_common_ptr info) { std::longjmp(reinterpret_cast<Errors*>(info->err)->back, 1); }
void be_quiet(j_common_ptr info, int level) {
  if (level < 0) ++info->err->num_warnings;
}

struct Decoder {
  jpeg_decompress_struct info;
  Errors errors;
};

// Whether every coefficient is there to its last bit. Where scans of a progressive file are missing, libjpeg smooths
// blocks by their neighbours, which a part does not have.
bool is_complete(const jpeg_decompress_struct& info) {
  if (!info.coef_bits) return true;
  for (int component = 0; component < info.num_components; ++component)
    for (int k = 0; k < DCTSIZE2; ++k)
      if (info.coef_bits[component][k] != 0) return false;
  return true;
}

// Nothing with a destructor may live in here: errors jump out of it.
bool decode(Decoder& decoder, const uint8_t* data, size_t size, const deit::Box& box, uint8_t* pixels) {
  jpeg_decompress_struct& info = decoder.info;
  info.err = jpeg_std_error(&decoder.errors.manager);
  decoder.errors.manager.error_exit = jump_back;
  decoder.errors.manager.emit_message = be_quiet;
  if (setjmp(decoder.errors.back)) return false;
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, data, size);
  if (jpeg_read_header(&info, TRUE) != JPEG_HEADER_OK) return false;
  info.out_color_space = JCS_RGB;
  info.dct_method = JDCT_ISLOW;
  info.do_fancy_upsampling = TRUE;
  jpeg_start_decompress(&info);
  if (!is_complete(info)) return false;
  const auto height = static_cast<int64_t>(info.output_height), width = static_cast<int64_t>(info.output_width);
  if (info.output_components != channels || box.top < 0 || box.left < 0 || box.height < 1 || box.width < 1 ||
      box.top + int64_t{box.height} > height || box.left + int64_t{box.width} > width)
    return false;

  JDIMENSION left = static_cast<JDIMENSION>(box.left), columns = static_cast<JDIMENSION>(box.width);
  if (box.width < width) jpeg_crop_scanline(&info, &left, &columns);  // moves `left` to the begin of a block
  if (left != static_cast<JDIMENSION>(box.left) || columns != static_cast<JDIMENSION>(box.width)) return false;
  if (box.top) jpeg_skip_scanlines(&info, static_cast<JDIMENSION>(box.top));
  for (int32_t y = 0; y < box.height; ++y) {
    JSAMPROW line = pixels + y * (channels * int64_t{box.width});
    if (jpeg_read_scanlines(&info, &line, 1) != 1) return false;
  }
  return info.err->num_warnings == 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// box[4] (top, left, height, width): the smallest that holds the random crops of `count` copies of an image. False: the
// policy is of another version of this code or crops otherwise, or a number of it is outside its range.
EXPORT bool deit_random_box(const void* numbers, int64_t bytes, const int64_t* counters, int64_t count, int64_t height,
                            int64_t width, int32_t* box) {
  deit::Policy policy;
  if (bytes != static_cast<int64_t>(sizeof policy)) return false;
  std::memcpy(&policy, numbers, sizeof policy);
  if (!is_good(policy) || policy.crop != deit::Crop::random_resized || count < 1 || height < 1 || width < 1 ||
      height > deit::max_side || width > deit::max_side)
    return false;
  int32_t top = deit::max_side, left = deit::max_side, bottom = 0, right = 0;
  for (int64_t i = 0; i < count; ++i, counters += 3) {
    const deit::Box own = random_box(policy, {counters[0], counters[1], counters[2], height, width});
    top = std::min(top, own.top);
    left = std::min(left, own.left);
    bottom = std::max(bottom, own.top + own.height);
    right = std::max(right, own.left + own.width);
  }
  const int32_t whole[4] = {top, left, bottom - top, right - left};
  std::memcpy(box, whole, sizeof whole);
  return true;
}

// The pixels of a box, uint8 (height, width, 3). False: the file is damaged before the box's end, or odd, or the box
// does not lie in it or does not begin at a block; pixels are then undefined.
EXPORT bool deit_decode_jpeg_part(const uint8_t* data, int64_t size, const int32_t* box, uint8_t* pixels) {
  Decoder decoder{};
  const bool done = decode(decoder, data, static_cast<size_t>(size), {box[0], box[1], box[2], box[3]}, pixels);
  jpeg_destroy_decompress(&decoder.info);
  return done;
}
