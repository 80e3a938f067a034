// Walks a weight by blocks of 8 rows, and all tokens in chunks. A tile returns float32 row sums; an epilogue takes them.
//
//                       tokens                        Tile: `template <int BLOCKS, int TOKENS>
//                ┌── chunk ──┬── chunk ──┬─ ─                 void sum(long row_block, long token,
//    row block   │ tile, then│           │                             RowSums (*sums)[TOKENS]) const`
//    of 8 rows   │ epilogue  │           │            CHUNK, its largest TOKENS, and CHUNK_OF_MANY, that of many tokens;
//                ├───────────┼───────────┼─ ─         WIDE, its BLOCKS for 1 and 2 wide tokens.
//    the next    │           │           │            The sums of a token must not depend on BLOCKS or TOKENS.
#pragma once
#include "activations.h"
#include "epilogues.h"
#include "threads.h"

namespace {

constexpr long SERIAL_BELOW = 1 << 18;  // weights times tokens: less work than this is not worth waking a thread

inline bool is_int8(long kind) { return kind != SPARSE_BF16 && kind != DENSE_BF16; }

// Behind the last block.
inline const uint8_t *row_scales_of(const Weight &weight) {
  return weight.data +
         blocks_over(weight.rows, BLOCK_ROWS) * blocks_over(weight.columns, BLOCK_COLUMNS) * BLOCK_BYTES_INT8;
}

// Where things lie in a block of int8 values. A cell is 8 rows x 8 columns of a 2:4 weight, or x 4 of a dense one.
template <bool SPARSE, bool BLOCK_SCALES>
struct Int8Block {
  static constexpr int CELLS = SPARSE ? 8 : 16, CELL_COLUMNS = BLOCK_COLUMNS / CELLS;
  static constexpr int VALUES = SPARSE ? int{POSITION_BYTES} : 0, SCALES = VALUES + CELLS * CELL_VALUES;
  static constexpr int BYTES = SCALES + (BLOCK_SCALES ? BLOCK_ROWS * 4 : 0);
};

template <template <bool SPARSE, bool BLOCK_SCALES> class Tile, class Use>
inline void with_int8_tile(const Weight &weight, const Panel &x, Use use) {
  if (weight.kind == DENSE_INT8) return use(Tile<false, true>{weight, x, nullptr, {}, {}});
  if (weight.kind == SPARSE_INT8) return use(Tile<true, false>{weight, x, row_scales_of(weight), {}, {}});
  use(Tile<true, true>{weight, x, nullptr, {}, {}});
}

// Apart, so that a tile is compiled once whatever the epilogue.
template <int BLOCKS, int TOKENS, class Tile>
__attribute__((noinline)) void sum_tile(const Tile &tile, long row_block, long token, RowSums (*sums)[TOKENS]) {
  tile.template sum<BLOCKS, TOKENS>(row_block, token, sums);
}

// BLOCKS row blocks side by side read x once for all of them.
template <int BLOCKS, int TOKENS, class Tile, class Epilogue>
inline long step(const Tile &tile, long row_block, long token, const Epilogue &epilogue) {
  RowSums sums[BLOCKS][TOKENS];
  sum_tile<BLOCKS, TOKENS>(tile, row_block, token, sums);
  for (int b = 0; b < BLOCKS; b++)
    for (int t = 0; t < TOKENS; t++) epilogue(row_block + b, token + t, sums[b][t]);
  return TOKENS;
}

template <int TOKENS, class Tile, class Epilogue>
inline long step_at_most(const Tile &tile, long left, long row_block, long token, const Epilogue &epilogue) {
  if constexpr (TOKENS > 1)
    if (left < TOKENS) return step_at_most<TOKENS - 1>(tile, left, row_block, token, epilogue);
  return step<1, TOKENS>(tile, row_block, token, epilogue);
}

// Tokens wider than this take a good part of the L1 cache, where each row block would read them anew (measured).
constexpr long WIDE_COLUMNS = 5120;

template <int TOKENS, class Tile, class Epilogue>
inline long walk_wide(const Tile &tile, long tokens, long row_block, long end, const Epilogue &epilogue) {
  constexpr int BLOCKS = Tile::WIDE[TOKENS];
  if (BLOCKS > 1 && tokens == TOKENS && tile.weight.columns > WIDE_COLUMNS)
    for (; row_block + BLOCKS <= end; row_block += BLOCKS) step<BLOCKS, TOKENS>(tile, row_block, 0, epilogue);
  return row_block;
}

constexpr long MANY_TOKENS = 32;  // beyond, what a chunk that is not full costs is little

template <class Tile, class Epilogue>
inline void walk(const Tile &tile, long tokens, long first, long end, const Epilogue &epilogue) {
  long row_block = walk_wide<1>(tile, tokens, first, end, epilogue);
  row_block = walk_wide<2>(tile, tokens, row_block, end, epilogue);
  for (; row_block < end; row_block++)
    for (long token = 0, left = tokens; left; left = tokens - token)
      token += tokens > MANY_TOKENS ? step_at_most<Tile::CHUNK_OF_MANY>(tile, left, row_block, token, epilogue)
                                    : step_at_most<Tile::CHUNK>(tile, left, row_block, token, epilogue);
}

// ---- a whole product. Isa, an instruction set: `fill` writes a token's row of a panel as the tiles of a kind read it,
// `with_tile` hands the tile of a weight to a function

template <class Isa, class Epilogue>
inline void multiply_panel(const Product &job, const Panel &x, const Epilogue &epilogue) {
  const Weight &weight = job.weight;
  int threads = weight.rows * weight.columns * job.tokens < SERIAL_BELOW ? 1 : job.threads;
  Isa::with_tile(weight, x, [&](const auto &tile) {
    share(blocks_over(weight.rows, BLOCK_ROWS), threads,
          [&](long first, long end) { walk(tile, job.tokens, first, end, epilogue); });
  });
}

template <class Isa, class T>
inline int multiply(const Product *job) {
  const Weight &weight = job->weight;
  void *memory = aligned_alloc(64, panel_bytes(job->tokens, weight.columns));
  if (!memory) return -1;
  Panel x = panel_in(memory, job->tokens, weight.columns);
  const T *from = static_cast<const T *>(job->x);
  for (long token = 0; token < job->tokens; token++)
    Isa::fill(weight.kind, from + token * weight.columns, weight.columns, x, token);
  multiply_panel<Isa>(*job, x, Store<T>(*job));
  free(memory);
  return 0;
}

}  // namespace
