// AVX-512 F, BW, DQ and VL (Skylake-X and newer): float32 x by vpermilps and fused multiply-add; bfloat16 x converted.
#include "activations.h"
#include "avx512_int8.h"
#include "avx512_common.h"
#include "forward.h"
#include "layer_attention.h"
#include "scoring.h"

namespace {

// Half-words of 32-bit lanes as floats. A bfloat16 is the upper half of a float32.
inline __m512 low_half_words(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline __m512 high_half_words(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

// The order of 32 columns of x for 2:4 weights: of every 16 the first 8, then of every 16 the last 8.
inline void place_sparse(const float *from, float *to) {
  for (int i = 0; i < 8; i++) to[i] = from[i];
  for (int i = 0; i < 8; i++) to[8 + i] = from[16 + i];
  for (int i = 0; i < 8; i++) to[16 + i] = from[8 + i];
  for (int i = 0; i < 8; i++) to[24 + i] = from[24 + i];
}

// For dense weights: the even columns, then the odd ones.
inline void place_dense(const float *from, float *to) {
  for (int i = 0; i < 16; i++) to[i] = from[2 * i];
  for (int i = 0; i < 16; i++) to[16 + i] = from[2 * i + 1];
}

struct SparseTile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 1, 1};
  const Weight &weight;
  const Panel &x;
  Prefetcher prefetcher;
  __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  __m512i low_shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
  __m512i high_shifts = _mm512_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30, 16, 18, 20, 22, 24, 26, 28, 30);

  template <int TOKENS>
  void add_cell(const uint8_t *positions, const uint8_t *values, const float *row, int pair,
                __m512 (*total)[4]) const {
    __m512i codes = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(positions)));
    codes = _mm512_permutexvar_epi32(halves, codes);
    __m512i low_codes = _mm512_srlv_epi32(codes, low_shifts), high_codes = _mm512_srlv_epi32(codes, high_shifts);
    __m512i pairs = _mm512_loadu_si512(values);
    __m512 low = low_half_words(pairs), high = high_half_words(pairs);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) {
      const float *columns = row + t * x.stride;
      __m512 &sum = total[t][pair];
      sum = _mm512_fmadd_ps(low, _mm512_permutevar_ps(_mm512_loadu_ps(columns), low_codes), sum);
      sum = _mm512_fmadd_ps(high, _mm512_permutevar_ps(_mm512_loadu_ps(columns + 16), high_codes), sum);
    }
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    const uint8_t *block = weight.data + row_block * (x.stride / BLOCK_COLUMNS) * BLOCK_BYTES_BF16;
    const float *row = x.row<float>(token), *end = row + x.stride;
    __m512 total[TOKENS][4] = {};
    for (; row < end; row += BLOCK_COLUMNS, block += BLOCK_BYTES_BF16) {
      for (int line = 0; line < BLOCK_BYTES_BF16; line += 64) prefetcher.prefetch<TOKENS <= 1>(block + line);
#pragma GCC unroll 8
      for (int cell = 0; cell < 8; cell++)  // [column half][pair]
        add_cell<TOKENS>(block + cell * 8, block + POSITION_BYTES + cell * 64, row + (cell >> 2) * 32, cell & 3, total);
    }
    for (int t = 0; t < TOKENS; t++) _mm256_store_ps(sums[0][t].row, sums_of_pairs(total[t]));
  }
};

struct DenseTile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 1, 1};
  const Weight &weight;
  const Panel &x;

  // ROWS at a time from `first`, so that the accumulators stay in registers.
  template <int TOKENS, int ROWS>
  void rows(const DenseRows &dense, int first, const float *x_row, __m512 (*total)[BLOCK_ROWS]) const {
    __m512 part[TOKENS][ROWS] = {};
    for (long column = 0; column < x.stride; column += 32)
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const uint16_t *values = dense.row[first + r] + column;
        prefetch_ahead(values, x.stride);
        __m512i pairs = _mm512_loadu_si512(values);
        __m512 low = low_half_words(pairs), high = high_half_words(pairs);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
          const float *columns = x_row + t * x.stride + column;
          part[t][r] = _mm512_fmadd_ps(low, _mm512_loadu_ps(columns), part[t][r]);
          part[t][r] = _mm512_fmadd_ps(high, _mm512_loadu_ps(columns + 16), part[t][r]);
        }
      }
    for (int t = 0; t < TOKENS; t++)
      for (int r = 0; r < ROWS; r++) total[t][first + r] = part[t][r];
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    constexpr int ROWS = TOKENS <= 2 ? 8 : 4;
    DenseRows dense(weight, row_block, x.stride);
    __m512 total[TOKENS][BLOCK_ROWS];
    for (int first = 0; first < BLOCK_ROWS; first += ROWS)
      rows<TOKENS, ROWS>(dense, first, x.row<float>(token), total);
    for (int t = 0; t < TOKENS; t++) _mm256_store_ps(sums[0][t].row, sums_of_rows(total[t]));
  }
};

struct Avx512 {
  template <class In>
  static void fill(long kind, const In *x, long columns, const Panel &to, long token) {
    if (is_int8(kind)) return quantise(x, columns, to, token);
    if (kind == DENSE_BF16) return fill_floats(x, columns, to, token, place_dense);
    fill_floats(x, columns, to, token, place_sparse);
  }

  template <class Use>
  static void with_tile(const Weight &weight, const Panel &x, Use use) {
    if (weight.kind == DENSE_BF16) return use(DenseTile{weight, x});
    if (weight.kind == SPARSE_BF16) return use(SparseTile{weight, x, {}});
    with_int8_tile<Int8Tile>(weight, x, use);
  }
};

}  // namespace

const Kernels avx512_kernels = {"avx512", multiply<Avx512, uint16_t>, multiply<Avx512, float>, expand_portably,
                              draw_tokens,
                              score_tokens, run_step<Avx512>, attend_layer};
