// AVX-512 with BF16, VBMI and VNNI (Sapphire Rapids, Zen 4 and newer): bfloat16 x by vpermw and vdpbf16ps.
#include "activations.h"
#include "avx512_int8.h"
#include "avx512_common.h"
#include "forward.h"
#include "layer_attention.h"
#include "avx512_picks.h"

namespace {

inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

struct SparseTile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 6, WIDE[] = {0, 4, 1};
  const Weight &weight;
  const Panel &x;
  Bf16Picks picks;
  Prefetcher prefetcher;

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    const long block_row = x.stride / BLOCK_COLUMNS * BLOCK_BYTES_BF16;
    const uint8_t *block = weight.data + row_block * block_row;
    const uint16_t *row = x.row<uint16_t>(token), *end = row + x.stride;
    __m512 total[BLOCKS][TOKENS][4] = {};
    for (; row < end; row += BLOCK_COLUMNS, block += BLOCK_BYTES_BF16)
#pragma GCC unroll 4
      for (int b = 0; b < BLOCKS; b++) add_block<TOKENS>(block + b * block_row, row, total[b]);
    for (int b = 0; b < BLOCKS; b++)
      for (int t = 0; t < TOKENS; t++) _mm256_store_ps(sums[b][t].row, sums_of_pairs(total[b][t]));
  }

  template <int TOKENS>
  void add_block(const uint8_t *block, const uint16_t *row, __m512 (*total)[4]) const {
    for (int line = 0; line < BLOCK_BYTES_BF16; line += 64) prefetcher.prefetch<TOKENS <= 1>(block + line);
#pragma GCC unroll 8
    for (int cell = 0; cell < 8; cell++) {  // [column half][pair]
      __m512i index = picks(block + cell * 8);
      __m512i weight = _mm512_loadu_si512(block + POSITION_BYTES + cell * 64);
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; t++) {
        __m512i columns = _mm512_loadu_si512(row + t * x.stride + (cell >> 2) * 32);
        total[t][cell & 3] = dot(total[t][cell & 3], weight, _mm512_permutexvar_epi16(index, columns));
      }
    }
  }
};

// Narrow weights are read one or two rows at a time, nearly one sequential stream. Wide ones more rows at a time, since
// their x does not stay in the L1 cache. A row's sum is one chain of additions either way.
struct DenseTile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 1, 1};
  static constexpr long NARROW_COLUMNS = 2048;
  const Weight &weight;
  const Panel &x;
  Prefetcher prefetcher;

  template <bool NARROW, int TOKENS>
  void prefetch(const uint16_t *values) const {
    if (NARROW) return prefetcher.prefetch<TOKENS <= 1>(reinterpret_cast<const uint8_t *>(values));
    prefetch_ahead(values, x.stride);
  }

  template <bool NARROW, int TOKENS, int ROWS>
  void rows(const DenseRows &dense, int first, const uint16_t *x_row, __m512 (*total)[BLOCK_ROWS]) const {
    __m512 part[TOKENS][ROWS] = {};
    for (long column = 0; column < x.stride; column += 32)
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const uint16_t *values = dense.row[first + r] + column;
        prefetch<NARROW, TOKENS>(values);
        __m512i w = _mm512_loadu_si512(values);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
          part[t][r] = dot(part[t][r], w, _mm512_loadu_si512(x_row + t * x.stride + column));
      }
    for (int t = 0; t < TOKENS; t++)
      for (int r = 0; r < ROWS; r++) total[t][first + r] = part[t][r];
  }

  template <bool NARROW, int TOKENS>
  void block(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    constexpr int ROWS = NARROW ? (TOKENS <= 1 ? 1 : 2) : TOKENS <= 2 ? 8 : 4;
    DenseRows dense(weight, row_block, x.stride);
    __m512 total[TOKENS][BLOCK_ROWS];
    for (int first = 0; first < BLOCK_ROWS; first += ROWS)
      rows<NARROW, TOKENS, ROWS>(dense, first, x.row<uint16_t>(token), total);
    for (int t = 0; t < TOKENS; t++) _mm256_store_ps(sums[0][t].row, sums_of_rows(total[t]));
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    if (x.stride <= NARROW_COLUMNS)
      block<true, TOKENS>(row_block, token, sums);
    else
      block<false, TOKENS>(row_block, token, sums);
  }
};

struct Avx512Bf16 {
  static void fill(long kind, const uint16_t *x, long columns, const Panel &to, long token) {
    if (is_int8(kind)) return quantise(x, columns, to, token);
    fill_bf16(x, columns, to, token);
  }

  static void fill(long, const float *x, long columns, const Panel &to, long token) { quantise(x, columns, to, token); }

  template <class Use>
  static void with_tile(const Weight &weight, const Panel &x, Use use) {
    if (weight.kind == DENSE_BF16) return use(DenseTile{weight, x, {}});
    if (weight.kind == SPARSE_BF16) return use(SparseTile{weight, x, {}, {}});
    with_int8_tile<Int8Tile>(weight, x, use);
  }
};

// bfloat16 needs no conversion, only padding where the columns are ragged.
int multiply_bf16(const Product *job) {
  const Weight &weight = job->weight;
  if (is_int8(weight.kind) || weight.columns % BLOCK_COLUMNS) return multiply<Avx512Bf16, uint16_t>(job);
  multiply_panel<Avx512Bf16>(*job, Panel{const_cast<void *>(job->x), nullptr, weight.columns}, Store<uint16_t>(*job));
  return 0;
}

int multiply_f32(const Product *job) {
  if (is_int8(job->weight.kind)) return multiply<Avx512Bf16, float>(job);
  return avx512_kernels.multiply_f32(job);  // full float32 accuracy
}

int draw_rows(const Draws *job) { return avx512_kernels.draw(job); }

int score_rows(const Scores *job) { return avx512_kernels.score(job); }

}  // namespace

const Kernels avx512bf16_kernels = {"avx512bf16", multiply_bf16, multiply_f32, expand_avx512, draw_rows,
                                    score_rows, run_step<Avx512Bf16>, attend_layer};
