// Where a step keeps what it computes, in memory that the caller owns:
//
//   of a piece     hidden, a branch to be normed, queries and keys and values, attended, gated: bfloat16, a row for
//                  each of PIECE tokens
//   shared         three panels of PIECE tokens: what a linear multiplies by, in the forms of its kinds of weights
//   of a thread    the same three for a few tokens, a row to work in, and the best token of each row of logits
#pragma once
#include "activations.h"
#include "epilogues.h"

namespace {

constexpr long PIECE = 64;      // tokens that go through the layers together
constexpr long OWN_TOKENS = 4;  // up to so many, each thread prepares a linear's input itself: no phase to wait for
enum Form { SPARSE_FORM, DENSE_FORM, INT8_FORM, FORMS };

inline Form form_of(long kind) {
  return kind == DENSE_BF16 ? DENSE_FORM : kind == SPARSE_BF16 ? SPARSE_FORM : INT8_FORM;
}

inline long kind_of(int form) {
  return form == DENSE_FORM ? DENSE_BF16 : form == SPARSE_FORM ? SPARSE_BF16 : SPARSE_INT8;
}

struct Workspace {
  uint16_t *hidden, *branch, *projected, *attended, *gated;
  uint8_t *shared;  // [FORMS] panels
  uint8_t *threads;
  long widest, thread_bytes, projected_stride, attended_stride;

  Workspace(const Model &m, uint8_t *memory)
      : widest(most_of(most_of(m.hidden, m.intermediate), m.heads * m.head_dim)),
        thread_bytes(static_cast<long>(FORMS * panel_bytes(OWN_TOKENS, widest) + row_bytes(1, widest) + best_bytes())),
        projected_stride((m.heads + 2 * m.key_heads) * m.head_dim), attended_stride(m.heads * m.head_dim) {
    hidden = take(&memory, m.hidden);
    branch = take(&memory, m.hidden);
    projected = take(&memory, projected_stride);
    attended = take(&memory, attended_stride);
    gated = take(&memory, m.intermediate);
    shared = memory;
    threads = shared + FORMS * panel_bytes(PIECE, widest);
  }

  size_t bytes(long count) const {
    return static_cast<size_t>(threads - reinterpret_cast<uint8_t *>(hidden) + count * thread_bytes);
  }

  Panel shared_panel(int form, long columns) const {
    return panel_in(shared + form * panel_bytes(PIECE, widest), PIECE, columns);
  }

  Panel own_panel(long thread, int form, long columns) const {
    return panel_in(of(thread) + form * panel_bytes(OWN_TOKENS, widest), OWN_TOKENS, columns);
  }

  uint16_t *row(long thread) const {
    return reinterpret_cast<uint16_t *>(of(thread) + FORMS * panel_bytes(OWN_TOKENS, widest));
  }

  Likeliest *best(long thread) const { return reinterpret_cast<Likeliest *>(of(thread) + thread_bytes - best_bytes()); }

 private:
  static long most_of(long a, long b) { return a > b ? a : b; }
  static long row_bytes(long rows, long columns) { return blocks_over(rows * columns * 2, 64) * 64; }
  static long best_bytes() { return blocks_over(PIECE * static_cast<long>(sizeof(Likeliest)), 64) * 64; }
  uint8_t *of(long thread) const { return threads + thread * thread_bytes; }

  static uint16_t *take(uint8_t **memory, long columns) {
    uint16_t *taken = reinterpret_cast<uint16_t *>(*memory);
    *memory += row_bytes(PIECE, columns);
    return taken;
  }
};

}  // namespace
