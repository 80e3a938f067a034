// What needs no instruction set: whether a step may be computed, and in how much memory.
#include "workspace.h"

namespace {

StepFault check_chunk(const Model &model, const Chunk &chunk) {
  if (chunk.tokens < 1) return STEP_EMPTY;
  if (chunk.start < 0 || chunk.start > model.positions - chunk.tokens) return STEP_POSITION;
  if (chunk.blocks < blocks_over(chunk.start + chunk.tokens, model.block_size)) return STEP_TABLE;
  for (long i = 0; i < chunk.blocks; i++)
    if (chunk.table[i] < 0 || chunk.table[i] >= model.blocks) return STEP_BLOCK;
  return STEP_FINE;
}

StepFault check_chunks(const Model &model, const Step &step) {
  long tokens = 0;
  for (long i = 0; i < step.chunk_count; i++) {
    if (StepFault fault = check_chunk(model, step.chunks[i])) return fault;
    tokens += step.chunks[i].tokens;
  }
  return tokens && tokens == step.token_count ? STEP_FINE : STEP_EMPTY;
}

}  // namespace

extern "C" StepFault check_step(const Model *model, const Step *step) {
  if (StepFault fault = check_chunks(*model, *step)) return fault;
  for (long i = 0; i < step->token_count; i++)
    if (step->tokens[i] < 0 || step->tokens[i] >= model->vocabulary) return STEP_TOKEN;
  for (long i = 0, least = 0; i < step->wanted_count; i++) {
    if (step->wanted[i] < least || step->wanted[i] >= step->token_count) return STEP_WANTED;
    least = step->wanted[i] + 1;
  }
  return STEP_FINE;
}

extern "C" size_t workspace_bytes(const Model *model, long threads) {
  return Workspace(*model, nullptr).bytes(threads < 1 ? 1 : threads);
}
