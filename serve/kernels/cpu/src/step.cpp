// What needs no instruction set: whether a step may be computed, and in how much memory.
#include <limits.h>

#include "workspace.h"

namespace {

struct Bounds {
  long positions, blocks, block_size;
};

StepFault check_chunk(const Bounds &bounds, const Chunk &chunk) {
  if (chunk.tokens < 1) return STEP_EMPTY;
  if (chunk.start < 0 || chunk.start > bounds.positions - chunk.tokens) return STEP_POSITION;
  if (chunk.blocks < blocks_over(chunk.start + chunk.tokens, bounds.block_size)) return STEP_TABLE;
  for (long i = 0; i < chunk.blocks; i++)
    if (chunk.table[i] < 0 || chunk.table[i] >= bounds.blocks) return STEP_BLOCK;
  return STEP_FINE;
}

StepFault check_chunks(const Bounds &bounds, const Chunk *chunks, long count, long token_count) {
  long tokens = 0;
  for (long i = 0; i < count; i++) {
    if (StepFault fault = check_chunk(bounds, chunks[i])) return fault;
    tokens += chunks[i].tokens;
  }
  return tokens && tokens == token_count ? STEP_FINE : STEP_EMPTY;
}

}  // namespace

extern "C" StepFault check_step(const Model *model, const Step *step) {
  const Bounds bounds = {model->positions, model->blocks, model->block_size};
  if (StepFault fault = check_chunks(bounds, step->chunks, step->chunk_count, step->token_count)) return fault;
  for (long i = 0; i < step->token_count; i++)
    if (step->tokens[i] < 0 || step->tokens[i] >= model->vocabulary) return STEP_TOKEN;
  for (long i = 0, least = 0; i < step->wanted_count; i++) {
    if (step->wanted[i] < least || step->wanted[i] >= step->token_count) return STEP_WANTED;
    least = step->wanted[i] + 1;
  }
  return STEP_FINE;
}

extern "C" StepFault check_layer_attention(const LayerAttention *job) {
  const Bounds bounds = {LONG_MAX, job->blocks, job->block_size};
  return check_chunks(bounds, job->chunks, job->chunk_count, job->token_count);
}

extern "C" size_t workspace_bytes(const Model *model, long threads) {
  return Workspace(*model, nullptr).bytes(threads < 1 ? 1 : threads);
}
