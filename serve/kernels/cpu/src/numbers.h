// Number formats: bfloat16 as uint16_t, converted as torch converts it (round to nearest even, NaN stays NaN).
#pragma once
#include <stdint.h>
#include <string.h>

namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float from_bf16(uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); }

inline uint16_t to_bf16(float value) {
  uint32_t bits = bits_of(value);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline float read_float(const float *from) { return *from; }
inline float read_float(const uint16_t *from) { return from_bf16(*from); }
inline void write_float(float *to, float value) { *to = value; }
inline void write_float(uint16_t *to, float value) { *to = to_bf16(value); }

template <class T>
inline T read_unaligned(const void *from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace
