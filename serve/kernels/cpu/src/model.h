// A model of the Llama family, or Gemma 3, and one step of it, as plain words: integers, doubles and addresses of 8
// bytes each, so that Python can write them. Nothing here owns memory.
#pragma once
#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  Weight weight;
  const uint16_t *bias;  // [rows] bfloat16, or null
} Linear;

typedef struct {
  const uint16_t *attention_norm, *mlp_norm;              // [hidden] bfloat16, as all that follow
  const uint16_t *attention_after_norm, *mlp_after_norm;  // [hidden], of what is added to the residual, or null
  const uint16_t *query_norm, *key_norm;                  // [head_dim], or null
  const uint16_t *cosines, *sines;                        // [positions, head_dim / 2]
  Linear query, key, value, output, gate, up, down;
  long window;               // tokens that one attends to, itself included; 0: all
  uint16_t *keys, *values;   // [blocks, key_heads, block_size * head_dim], see cache.h
} Layer;

typedef struct Model {
  long hidden, intermediate, heads, key_heads, head_dim, vocabulary;
  long positions;           // of the rotary tables: the longest sequence
  long blocks, block_size;  // of the cache
  long is_gemma;            // norms multiply by 1 + weight, and gates are GELU (tanh), not SiLU
  double norm_eps, attention_scale, embedding_scale;
  const uint16_t *embeddings, *norm;
  Linear head;
  long layer_count;
  const Layer *layers;
} Model;

// Consecutive tokens of one sequence; `start` of them are in the cache.
typedef struct {
  long start, tokens;
  const int *table;  // which block of the cache holds which of the sequence
  long blocks;       // in the table
} Chunk;

typedef struct Step {
  long token_count, chunk_count, wanted_count;
  const long *tokens;   // of all chunks
  const Chunk *chunks;
  const long *wanted;   // whose logits are wanted: indices into tokens, ascending
  uint16_t *logits;     // [wanted, vocabulary] bfloat16
  long *best;           // [wanted] the likeliest token, of equals the lowest; -1: its logit is NaN or infinite
  uint8_t *workspace;   // workspace_bytes(model, threads), 64-byte aligned
  long threads;
} Step;

// The attention of one layer of any model: keys and values of new tokens go to the cache, then their queries attend.
typedef struct LayerAttention {
  const Chunk *chunks;
  long chunk_count, token_count;
  uint16_t *keys, *values;   // the layer's cache [blocks, key_heads, block_size * head_dim], see cache.h
  long blocks, block_size;
  long heads, key_heads, head_dim, window;
  double scale, cap;         // of scores; cap 0: none
  const uint16_t *query;     // [token_count, heads, head_dim] bfloat16, as all that follow
  const uint16_t *key, *value;  // [token_count, key_heads, head_dim]
  uint16_t *attended;        // [token_count, heads, head_dim]
  long threads;
} LayerAttention;

enum StepFault { STEP_FINE, STEP_EMPTY, STEP_TOKEN, STEP_POSITION, STEP_TABLE, STEP_BLOCK, STEP_WANTED };

// Whether a step stays within the model and the cache: computing reads and writes where it says.
enum StepFault check_step(const Model *model, const Step *step);
enum StepFault check_layer_attention(const LayerAttention *job);
size_t workspace_bytes(const Model *model, long threads);

#ifdef __cplusplus
}
#endif
