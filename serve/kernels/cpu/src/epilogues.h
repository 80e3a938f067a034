// What becomes of the sums that a tile returns.
#pragma once
#include <math.h>

#include "model.h"
#include "rows.h"

namespace {

// What a tile returns for one token: the sums of 8 rows.
struct alignas(32) RowSums {
  float row[BLOCK_ROWS];
};

// An epilogue is called with a block of rows, a token and its sums. This one adds the bias, rounds and stores.
template <class Out>
struct Store {
  Out *y;
  const Out *bias;  // or null
  long rows;

  explicit Store(const Product &job)
      : y(static_cast<Out *>(job.y)), bias(static_cast<const Out *>(job.bias)), rows(job.weight.rows) {}

  void operator()(long row_block, long token, const RowSums &sums) const {
    long first = row_block * BLOCK_ROWS, rest = rows - first, count = rest < BLOCK_ROWS ? rest : long{BLOCK_ROWS};
    Out *to = y + token * rows + first;
    float total[BLOCK_ROWS];
    for (int i = 0; i < BLOCK_ROWS; i++) total[i] = sums.row[i];
    if (bias)
      for (long i = 0; i < count; i++) total[i] += read_float(bias + first + i);
    if (count == BLOCK_ROWS)
      for (int i = 0; i < BLOCK_ROWS; i++) write_float(to + i, total[i]);
    else
      for (long i = 0; i < count; i++) write_float(to + i, total[i]);
  }
};

// ---- of a step: whole blocks of rows; every sum is rounded to bfloat16 before anything else is done with it

__attribute__((always_inline)) inline RowSums rounded_sums(const RowSums &sums, const uint16_t *bias, long first) {
  RowSums total = sums;
  if (bias)
    for (int i = 0; i < BLOCK_ROWS; i++) total.row[i] += from_bf16(bias[first + i]);
  for (int i = 0; i < BLOCK_ROWS; i++) total.row[i] = rounded(total.row[i]);
  return total;
}

// Rows of a linear into rows of activations [tokens][stride].
struct Target {
  uint16_t *rows;
  long stride;
  const uint16_t *bias;  // or null

  uint16_t *at(long row_block, long token) const { return rows + token * stride + row_block * BLOCK_ROWS; }
};

struct Project : Target {
  void operator()(long row_block, long token, const RowSums &sums) const {
    RowSums y = rounded_sums(sums, bias, row_block * BLOCK_ROWS);
    uint16_t *to = at(row_block, token);
    for (int i = 0; i < BLOCK_ROWS; i++) to[i] = to_bf16(y.row[i]);
  }
};

struct AddToResidual : Target {
  void operator()(long row_block, long token, const RowSums &sums) const {
    RowSums y = rounded_sums(sums, bias, row_block * BLOCK_ROWS);
    uint16_t *to = at(row_block, token);
    for (int i = 0; i < BLOCK_ROWS; i++) to[i] = to_bf16(from_bf16(to[i]) + y.row[i]);
  }
};

__attribute__((always_inline)) inline float silu(float x) { return x / (1.f + exponential(-x)); }

// x / 2 * (1 + tanh(u)) is x / (1 + e^-2u).
__attribute__((always_inline)) inline float gelu(float x) {
  return x / (1.f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x)));
}

// The activation of gate first; then up is multiplied onto it by the same thread.
template <float (*activation)(float)>
struct Gate : Target {
  void operator()(long row_block, long token, const RowSums &sums) const {
    RowSums y = rounded_sums(sums, bias, row_block * BLOCK_ROWS);
    uint16_t *to = at(row_block, token);
    for (int i = 0; i < BLOCK_ROWS; i++) to[i] = to_bf16(activation(y.row[i]));
  }
};

struct MultiplyGate : Target {
  void operator()(long row_block, long token, const RowSums &sums) const {
    RowSums y = rounded_sums(sums, bias, row_block * BLOCK_ROWS);
    uint16_t *to = at(row_block, token);
    for (int i = 0; i < BLOCK_ROWS; i++) to[i] = to_bf16(from_bf16(to[i]) * y.row[i]);
  }
};

// The likeliest token so far, of equals the lowest. Once a logit was NaN it is NAN_LOGIT, which nothing is above.
struct Likeliest {
  float logit;
  long token;

  void consider(float other, long its_token) {
    if (other > logit || (other == logit && its_token < token)) *this = {other, its_token};
  }
};

constexpr Likeliest NAN_LOGIT = {INFINITY, -1};

// Logits, and of the rows that one thread computes the best. Blocks come in any order: who helps others goes back.
struct Logits : Target {
  Likeliest *best;  // [tokens]

  void operator()(long row_block, long token, const RowSums &sums) const {
    RowSums y = rounded_sums(sums, bias, row_block * BLOCK_ROWS);
    uint16_t *to = at(row_block, token);
    float most = y.row[0];
    int nan = 0;
    for (int i = 0; i < BLOCK_ROWS; i++) {
      to[i] = to_bf16(y.row[i]);
      most = y.row[i] > most ? y.row[i] : most;
      nan |= y.row[i] != y.row[i];
    }
    if (nan) best[token] = NAN_LOGIT;
    if (most >= best[token].logit)
      for (int i = 0; i < BLOCK_ROWS; i++) best[token].consider(y.row[i], row_block * BLOCK_ROWS + i);
  }
};

}  // namespace
