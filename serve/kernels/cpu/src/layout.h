// The device layouts: how a weight lies in memory while it is multiplied. Every instruction set reads the same bytes.
//
// A 2:4 weight is cut into blocks of 8 rows x 64 columns, zero-padded, stored row of blocks by row of blocks. A block
// is one sequential piece of memory: the 2-bit positions of its 256 kept values, the values, and perhaps scales. A cell
// is 32 of the values.
//
// bfloat16, 576 bytes
//   64 B  positions: one u64 for each [column half][pair of rows]
//   512 B values:    one cell of 2 rows x 32 columns, 32 values, for each [column half][pair]
//   Value `word` of a cell is half-word `word & 1` of 32-bit lane `word >> 1`. The lanes of 128 bits hold 2 rows x
//   2 kept values; the low half-words belong to one group of four columns, the high half-words to the next but one.
//   So vpermilps picks from groups of four floats (AVX2, AVX-512F), and vpermw from 32 bfloat16 (AVX-512 VBMI).
//
// int8, 320 bytes, or 352 with a scale for each row of each block
//   64 B  positions: for each 8 columns the canonical byte of each of the 8 rows
//   256 B values:    for each 8 columns a cell, the 4 bytes that each of the 8 rows keeps there
//   32 B  scales, float32, of the 8 rows
//   With one scale for each row the scales follow the last block: float32 for every padded row.
//
// A dense weight is its own row-major matrix of bfloat16, the columns padded to 64.
//
// A dense weight in int8 is cut into the same blocks; all 512 values of one are kept, 544 bytes
//   512 B values:    for each 4 columns a cell, the 4 bytes of each of the 8 rows
//   32 B  scales, float32, of the 8 rows
#pragma once
#include <stddef.h>
#include <stdint.h>

enum WeightKind { SPARSE_BF16 = 0, SPARSE_INT8 = 1, SPARSE_INT8_BLOCK_SCALES = 2, DENSE_BF16 = 3, DENSE_INT8 = 4 };
enum {
  BLOCK_ROWS = 8,
  BLOCK_COLUMNS = 64,
  BLOCK_VALUES = BLOCK_ROWS * BLOCK_COLUMNS,
  CELL_VALUES = 32,
  POSITION_BYTES = 64,
  BLOCK_BYTES_BF16 = 576,
  BLOCK_BYTES_INT8 = 320,
  BLOCK_BYTES_INT8_SCALED = 352,
  BLOCK_BYTES_DENSE_INT8 = 544,
};

static inline long blocks_over(long extent, long block) { return (extent + block - 1) / block; }

static inline size_t block_bytes(int kind) {
  if (kind == DENSE_INT8) return BLOCK_BYTES_DENSE_INT8;
  return kind == SPARSE_BF16 ? BLOCK_BYTES_BF16 : kind == SPARSE_INT8 ? BLOCK_BYTES_INT8 : BLOCK_BYTES_INT8_SCALED;
}

static inline size_t layout_bytes(int kind, long rows, long columns) {
  size_t row_blocks = (size_t)blocks_over(rows, BLOCK_ROWS);
  size_t column_blocks = (size_t)blocks_over(columns, BLOCK_COLUMNS);
  if (kind == DENSE_BF16) return (size_t)rows * column_blocks * BLOCK_COLUMNS * sizeof(uint16_t);
  size_t scales = kind == SPARSE_INT8 ? row_blocks * BLOCK_ROWS * sizeof(float) : 0;
  return row_blocks * column_blocks * block_bytes(kind) + scales;
}
