// Expands rows of a device layout to dense; how one row of one block is expanded is the caller's.
#pragma once
#include <string.h>

#include "kernels.h"
#include "numbers.h"
#include "threads.h"

namespace {

template <class Out>
inline void expand_dense_int8_row(const uint8_t *block, int row, float scale, Out *to) {
  for (int column = 0; column < BLOCK_COLUMNS; column++) {
    int8_t value = static_cast<int8_t>(block[column / 4 * 32 + row * 4 + column % 4]);
    write_float(to + column, value * scale);
  }
}

// BlockRow: `template <class Out> void bf16(const uint8_t *block, int row, Out *to) const` and
// `int8(const uint8_t *block, int row, float scale, Out *to)`: row 0..7 of a block, 64 columns.
template <class BlockRow>
struct Expander {
  const Expansion *job;
  BlockRow block_row;
  long column_blocks = blocks_over(job->columns, BLOCK_COLUMNS);
  long row_blocks = blocks_over(job->rows, BLOCK_ROWS);

  float scale(long row, const uint8_t *block) const {
    if (job->kind == DENSE_INT8) return read_unaligned<float>(block + BLOCK_VALUES + (row % BLOCK_ROWS) * 4);
    if (job->kind == SPARSE_INT8_BLOCK_SCALES)
      return read_unaligned<float>(block + BLOCK_BYTES_INT8 + (row % BLOCK_ROWS) * 4);
    return read_unaligned<float>(job->weight + row_blocks * column_blocks * BLOCK_BYTES_INT8 + row * 4);
  }

  template <class Out>
  void block(long row, long column_block, Out *to) const {
    long index = row / BLOCK_ROWS * column_blocks + column_block;
    const uint8_t *block = job->weight + index * static_cast<long>(block_bytes(job->kind));
    int r = static_cast<int>(row % BLOCK_ROWS);
    if (job->kind == SPARSE_BF16) return block_row.bf16(block, r, to);
    if (job->kind == DENSE_INT8) return expand_dense_int8_row(block, r, scale(row, block), to);
    block_row.int8(block, r, scale(row, block), to);
  }

  template <class Out>
  void row(long row, Out *to) const {
    long whole = job->columns / BLOCK_COLUMNS, rest = job->columns % BLOCK_COLUMNS;
    for (long i = 0; i < whole; i++) block(row, i, to + i * BLOCK_COLUMNS);
    if (!rest) return;
    Out padded[BLOCK_COLUMNS];
    block(row, whole, padded);
    memcpy(to + whole * BLOCK_COLUMNS, padded, static_cast<size_t>(rest) * sizeof(Out));
  }

  template <class Out>
  void rows(long first, long end) const {
    Out *to = static_cast<Out *>(job->to);
    for (long i = first; i < end; i++) row(job->first_row + i, to + i * job->columns);
  }
};

template <class BlockRow>
inline void expand_with(const BlockRow &block_row, const Expansion *job) {
  Expander<BlockRow> expander{job, block_row};
  share(job->end_row - job->first_row, job->threads, [&](long first, long end) {
    if (job->is_float32)
      expander.template rows<float>(first, end);
    else
      expander.template rows<uint16_t>(first, end);
  });
}

}  // namespace
