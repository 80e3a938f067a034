// What the kernels offer to the Python module. Plain pointers, no Python, no torch; callers have checked all sizes.
#pragma once
#include "layout.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  long kind;            // WeightKind
  const uint8_t *data;  // layout_bytes(kind, rows, columns)
  long rows, columns;
} Weight;

typedef struct {
  Weight weight;
  const void *x;     // [tokens, columns], bfloat16 or float32
  const void *bias;  // [rows] in the type of x, or null
  void *y;           // [tokens, rows] in the type of x
  long tokens;
  int is_float32;  // the type of x, bias and y
  int threads;
} Product;  // y = x W^T + bias

typedef struct {
  const void *values;        // [rows, columns / 2], bfloat16 or int8
  const uint8_t *positions;  // [rows, ceil(columns / 8)], canonical
  const float *scales;       // [rows, scales_per_row] with int8 values
  long scales_per_row;
  long rows, columns;
} Canonical;

// Writes rows first_row to end_row, dense, [end_row - first_row, columns], as bfloat16 or float32.
typedef struct {
  int kind;
  const uint8_t *weight;
  void *to;
  long rows, columns, first_row, end_row;
  int is_float32;
  int threads;
} Expansion;
void expand_portably(const Expansion *job);
void expand_avx512(const Expansion *job);  // with what avx512bf16_kernels needs

// Writes layout_bytes(kind, rows, columns) bytes.
void pack_layout(int kind, const Canonical *from, uint8_t *to, int threads);

typedef struct {
  void *values;  // all as in Canonical
  uint8_t *positions;
  float *scales;
  long scales_per_row;
  long rows, columns;
} CanonicalTo;

// The inverse of pack_layout: every byte of values, positions and scales is written, as pack_layout was given it.
void unpack_layout(int kind, const uint8_t *from, const CanonicalTo *to, int threads);

typedef struct {
  double row;                                // of the logits
  double temperature, min_p, top_k, top_p;  // as in Sampling; temperature 0: the best; top_k 0: off
  double u;                                  // 0 <= u < 1, which token is drawn
} Draw;

typedef struct {
  const void *logits;  // [rows, vocabulary], bfloat16 or float32
  long vocabulary;
  int is_float32;
  const Draw *draws;
  long count;
  int64_t *ids;  // [count]; -1 where the best of the row is NaN or infinite
  int threads;
} Draws;

typedef struct {
  const void *logits;     // [count, vocabulary], bfloat16 or float32
  long vocabulary;
  int is_float32;
  const int64_t *tokens;  // [count], whose log probabilities are wanted
  long count, top;        // top: of so many likeliest, too; at most the vocabulary
  float *logprobs;        // [count]; all are NaN where the best of a row is NaN or infinite
  int64_t *top_ids;       // [count, top], best first
  float *top_logprobs;    // [count, top]
  int threads;
} Scores;

struct Model;  // model.h
struct Step;
struct LayerAttention;

// The multiplications return 0, or -1 where memory for the activations cannot be had; `draw` and `score` too.
typedef struct {
  const char *name;
  int (*multiply_bf16)(const Product *);  // x is bfloat16
  int (*multiply_f32)(const Product *);   // x is float32
  void (*expand)(const Expansion *);
  int (*draw)(const Draws *);
  int (*score)(const Scores *);
  void (*run_step)(const struct Model *, const struct Step *);  // both have been checked
  void (*attend_layer)(const struct LayerAttention *);          // which has been checked
} Kernels;

extern const Kernels avx2_kernels, avx512_kernels, avx512bf16_kernels;

#ifdef __cplusplus
}
#endif
