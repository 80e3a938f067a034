// Walks a weight by blocks of 8 rows, and all tokens in chunks. A tile returns float32 row sums; the epilogue stores.
#pragma once
#include "kernels.h"
#include "numbers.h"
#include "threads.h"

namespace {

// What a tile returns for one token: the sums of 8 rows.
struct alignas(32) RowSums {
  float row[BLOCK_ROWS];
};

constexpr long SERIAL_BELOW = 1 << 18;  // weights times tokens: less work than this is not worth waking a thread

// ---- the epilogue: bias, rounding, store

template <class Out>
inline void store_row_sums(const Product &job, long first_row, long token, const RowSums &sums) {
  Out *to = static_cast<Out *>(job.y) + token * job.rows + first_row;
  const Out *bias = job.bias ? static_cast<const Out *>(job.bias) + first_row : nullptr;
  float total[BLOCK_ROWS];
  long rest = job.rows - first_row, count = rest < BLOCK_ROWS ? rest : long{BLOCK_ROWS};
  for (int i = 0; i < BLOCK_ROWS; i++) total[i] = sums.row[i];
  if (bias)
    for (long i = 0; i < count; i++) total[i] += read_float(bias + i);
  if (count == BLOCK_ROWS)
    for (int i = 0; i < BLOCK_ROWS; i++) write_float(to + i, total[i]);
  else
    for (long i = 0; i < count; i++) write_float(to + i, total[i]);
}

inline void store(const Product &job, long first_row, long token, const RowSums &sums) {
  if (job.is_float32)
    store_row_sums<float>(job, first_row, token, sums);
  else
    store_row_sums<uint16_t>(job, first_row, token, sums);
}

// ---- the walk

// BLOCKS row blocks side by side read x once for all of them.
template <int BLOCKS, int TOKENS, class Tile>
inline long step(const Tile &tile, const Product &job, long row_block, long token) {
  RowSums sums[BLOCKS][TOKENS];
  tile.template sum<BLOCKS, TOKENS>(row_block, token, sums);
  for (int b = 0; b < BLOCKS; b++)
    for (int t = 0; t < TOKENS; t++) store(job, (row_block + b) * BLOCK_ROWS, token + t, sums[b][t]);
  return TOKENS;
}

template <int TOKENS, class Tile>
inline long step_at_most(const Tile &tile, const Product &job, long row_block, long token) {
  if constexpr (TOKENS > 1)
    if (job.tokens - token < TOKENS) return step_at_most<TOKENS - 1>(tile, job, row_block, token);
  return step<1, TOKENS>(tile, job, row_block, token);
}

// Tokens wider than this take a good part of the L1 cache, where each row block would read them anew (measured).
constexpr long WIDE_COLUMNS = 5120;

template <int TOKENS, class Tile>
inline long walk_wide(const Tile &tile, const Product &job, long row_block, long end) {
  constexpr int BLOCKS = Tile::WIDE[TOKENS];
  if (BLOCKS > 1 && job.tokens == TOKENS && job.columns > WIDE_COLUMNS)
    for (; row_block + BLOCKS <= end; row_block += BLOCKS) step<BLOCKS, TOKENS>(tile, job, row_block, 0);
  return row_block;
}

constexpr long MANY_TOKENS = 32;  // beyond, what a chunk that is not full costs is little

// Tile: `template <int BLOCKS, int TOKENS> void sum(long row_block, long token, RowSums (*)[TOKENS]) const`; CHUNK, its
// largest TOKENS, and CHUNK_OF_MANY, that of many tokens; WIDE, its BLOCKS for 1 and 2 wide tokens. The sums of a token
// must not depend on BLOCKS or TOKENS.
template <class Tile>
inline void walk(const Tile &tile, const Product &job, long first, long end) {
  long row_block = walk_wide<2>(tile, job, walk_wide<1>(tile, job, first, end), end);
  for (; row_block < end; row_block++)
    for (long token = 0; token < job.tokens;)
      token += job.tokens > MANY_TOKENS ? step_at_most<Tile::CHUNK_OF_MANY>(tile, job, row_block, token)
                                        : step_at_most<Tile::CHUNK>(tile, job, row_block, token);
}

template <class Tile>
inline void multiply(const Tile &tile, const Product &job) {
  long work = job.rows * job.columns * job.tokens;
  int threads = work < SERIAL_BELOW ? 1 : job.threads;
  share(blocks_over(job.rows, BLOCK_ROWS), threads, [&](long first, long end) { walk(tile, job, first, end); });
}

}  // namespace
