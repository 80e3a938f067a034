// Activations as the tiles read them: one row for each token, the columns padded with zeros to a multiple of 64.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "numbers.h"

namespace {

// Rows of T. Borrows the caller's x where it fits as it is, else owns a converted copy. `rows` is null without memory.
template <class T>
struct Panel {
  const T *rows = nullptr;
  long stride = 0;
  T *owned = nullptr;

  explicit Panel(const Product &job) : stride(blocks_over(job.columns, BLOCK_COLUMNS) * BLOCK_COLUMNS) {}
  Panel(const Panel &) = delete;
  ~Panel() { free(owned); }

  bool allocate(long tokens) {
    size_t bytes = static_cast<size_t>(tokens * stride) * sizeof(T);
    rows = owned = static_cast<T *>(aligned_alloc(64, (bytes + 63) / 64 * 64));
    return owned;
  }
};

// 32 columns in natural order, converted to float.
template <class In>
inline void read_columns(const In *from, long count, float *to) {
  for (long i = 0; i < count; i++) to[i] = read_float(from + i);
  for (long i = count; i < 32; i++) to[i] = 0;
}

// Fills a panel of floats; place(from, to) says where each of 32 columns lies.
template <class In, class Place>
inline bool fill_floats(const Product &job, Panel<float> *panel, Place place) {
  if (!panel->allocate(job.tokens)) return false;
  for (long token = 0; token < job.tokens; token++) {
    const In *x = static_cast<const In *>(job.x) + token * job.columns;
    float *row = panel->owned + token * panel->stride, natural[32];
    for (long column = 0; column < panel->stride; column += 32) {
      long count = job.columns - column;
      if (count >= 32)
        read_columns(x + column, 32, natural);
      else
        read_columns(x + column, count < 0 ? 0 : count, natural);
      place(natural, row + column);
    }
  }
  return true;
}

// bfloat16 needs no conversion, only padding where the columns are ragged.
inline bool fill_bf16(const Product &job, Panel<uint16_t> *panel) {
  const uint16_t *x = static_cast<const uint16_t *>(job.x);
  if (panel->stride == job.columns) {
    panel->rows = x;
    return true;
  }
  if (!panel->allocate(job.tokens)) return false;
  size_t bytes = static_cast<size_t>(job.columns) * 2, row_bytes = static_cast<size_t>(panel->stride) * 2;
  for (long token = 0; token < job.tokens; token++) {
    uint16_t *row = panel->owned + token * panel->stride;
    memcpy(row, x + token * job.columns, bytes);
    memset(row + job.columns, 0, row_bytes - bytes);
  }
  return true;
}

// 16-bit integers for int8 weights: x is rounded to multiples of the token's largest magnitude / LARGEST.
constexpr int LARGEST = 32512;

struct Quantised {
  Panel<int16_t> x;
  Panel<float> scales;  // one for each token; NaN where a token holds NaN or infinity

  explicit Quantised(const Product &job) : x(job), scales(job) { scales.stride = 1; }

  // Compared as integers, so that NaN counts as larger than infinity.
  template <class In>
  static float largest(const In *from, long columns) {
    uint32_t most = 0;
    for (long i = 0; i < columns; i++) {
      uint32_t magnitude = bits_of(read_float(from + i)) & 0x7fffffff;
      most = magnitude > most ? magnitude : most;
    }
    return float_of(most);
  }

  template <class In>
  static void quantise(const In *from, long columns, float inverse, int16_t *to) {
    constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
    for (long i = 0; i < columns; i++) {
      float shifted = read_float(from + i) * inverse + ROUND;
      to[i] = static_cast<int16_t>(bits_of(shifted) - bits_of(ROUND));
    }
  }

  template <class In>
  void row(const Product &job, long token) {
    const In *from = static_cast<const In *>(job.x) + token * job.columns;
    int16_t *to = x.owned + token * x.stride;
    memset(to + job.columns, 0, static_cast<size_t>(x.stride - job.columns) * sizeof *to);
    float most = largest(from, job.columns), scale = most / LARGEST;
    bool usable = most < float_of(0x7f800000);
    if (usable && scale > 1e-36f)
      quantise(from, job.columns, 1 / scale, to);
    else
      memset(to, 0, static_cast<size_t>(job.columns) * sizeof *to);
    scales.owned[token] = usable ? scale : float_of(0x7fc00000);
  }

  template <class In>
  bool fill(const Product &job) {
    if (!x.allocate(job.tokens) || !scales.allocate(job.tokens)) return false;
    for (long token = 0; token < job.tokens; token++) row<In>(job, token);
    return true;
  }
};

}  // namespace
