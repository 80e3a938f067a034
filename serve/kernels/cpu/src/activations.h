// Activations as the tiles read them: one row for each token, the columns padded with zeros to a multiple of 64.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "numbers.h"

namespace {

// Rows of what a tile multiplies by: float, bfloat16, or int16 with a scale for each token. It owns nothing.
struct Panel {
  void *rows;
  float *scales;
  long stride;  // elements

  template <class T>
  T *row(long token) const {
    return static_cast<T *>(rows) + token * stride;
  }
};

inline long padded(long columns) { return blocks_over(columns, BLOCK_COLUMNS) * BLOCK_COLUMNS; }

// Of any kind; the scales stand behind the rows.
inline size_t panel_bytes(long tokens, long columns) {
  size_t bytes = static_cast<size_t>(tokens * (padded(columns) + 1)) * sizeof(float);
  return (bytes + 63) / 64 * 64;
}

inline Panel panel_in(void *memory, long tokens, long columns) {
  long stride = padded(columns);
  return {memory, static_cast<float *>(memory) + tokens * stride, stride};
}

// 32 columns in natural order, converted to float.
template <class In>
inline void read_columns(const In *from, long count, float *to) {
  for (long i = 0; i < count; i++) to[i] = read_float(from + i);
  for (long i = count; i < 32; i++) to[i] = 0;
}

// A token's row of floats; place(from, to) says where each of 32 columns lies.
template <class In, class Place>
inline void fill_floats(const In *x, long columns, const Panel &panel, long token, Place place) {
  float *to = panel.row<float>(token), natural[32];
  for (long column = 0; column < panel.stride; column += 32) {
    long count = columns - column;
    if (count >= 32)
      read_columns(x + column, 32, natural);
    else
      read_columns(x + column, count < 0 ? 0 : count, natural);
    place(natural, to + column);
  }
}

inline void fill_bf16(const uint16_t *x, long columns, const Panel &panel, long token) {
  uint16_t *to = panel.row<uint16_t>(token);
  memcpy(to, x, static_cast<size_t>(columns) * sizeof *to);
  memset(to + columns, 0, static_cast<size_t>(panel.stride - columns) * sizeof *to);
}

// ---- 16-bit integers for int8 weights: x is rounded to multiples of the token's largest magnitude / LARGEST

constexpr int LARGEST = 32512;

// Compared as integers, so that NaN counts as larger than infinity.
template <class In>
inline float largest_of(const In *from, long columns) {
  uint32_t most = 0;
  for (long i = 0; i < columns; i++) {
    uint32_t magnitude = bits_of(read_float(from + i)) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  return float_of(most);
}

template <class In>
inline void round_to_integers(const In *from, long columns, float inverse, int16_t *to) {
  constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  for (long i = 0; i < columns; i++) {
    float shifted = read_float(from + i) * inverse + ROUND;
    to[i] = static_cast<int16_t>(bits_of(shifted) - bits_of(ROUND));
  }
}

// A token's row and its scale, which is NaN where the token holds NaN or infinity.
template <class In>
inline void quantise(const In *x, long columns, const Panel &panel, long token) {
  int16_t *to = panel.row<int16_t>(token);
  memset(to + columns, 0, static_cast<size_t>(panel.stride - columns) * sizeof *to);
  float most = largest_of(x, columns), scale = most / LARGEST;
  bool usable = most < float_of(0x7f800000);
  if (usable && scale > 1e-36f)
    round_to_integers(x, columns, 1 / scale, to);
  else
    memset(to, 0, static_cast<size_t>(columns) * sizeof *to);
  panel.scales[token] = usable ? scale : float_of(0x7fc00000);
}

}  // namespace
