// int8 weights with AVX-512, 2:4 and dense: 16-bit integer activations, exact integer sums, a scale for each row or for
// each row of a block.
// Included by both AVX-512 files; __AVX512VNNI__ chooses the shorter instruction.
#pragma once
#include "activations.h"
#include "avx512_common.h"
#include "avx512_picks.h"

namespace {

inline __m512i dot_int16(__m512i sum, __m512i a, __m512i b) {
#ifdef __AVX512VNNI__
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

// A lane adds 4 products of at most 32512 * 128 for each block; 64 blocks stay below 2^31.
constexpr long EXACT_COLUMNS = 64 * BLOCK_COLUMNS;

template <bool BLOCK_SCALES>
struct Int8Tile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 4, 1};
  static constexpr int BYTES = BLOCK_SCALES ? int{BLOCK_BYTES_INT8_SCALED} : int{BLOCK_BYTES_INT8};
  static constexpr long STEP = BLOCK_SCALES ? long{BLOCK_COLUMNS} : EXACT_COLUMNS;  // columns of one integer sum
  const Weight &weight;
  const Panel &x;
  const uint8_t *row_scales;  // unless BLOCK_SCALES
  Int8Picks picks;
  Prefetcher prefetcher;

  // Adds one block to the integer sums of each pair.
  template <int TOKENS>
  void add_block(const uint8_t *block, const int16_t *row, __m512i (*total)[4]) const {
    for (int line = 0; line < BYTES; line += 64) prefetcher.prefetch<TOKENS <= 1>(block + line);
#pragma GCC unroll 8
    for (int half_cell = 0; half_cell < 8; half_cell++) {  // [column half][pair], so that x stays in registers
      int half = half_cell >> 2, pair = half_cell & 3;
      const uint8_t *values = block + POSITION_BYTES + pair * 64 + half * 32;
      __m512i index = picks(block + pair * 16 + half * 8);
      __m512i kept = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values)));
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; t++) {
        __m512i columns = _mm512_loadu_si512(row + t * x.stride + half * 32);
        total[t][pair] = dot_int16(total[t][pair], kept, picks.pick(index, columns));
      }
    }
  }

  // The scales of a pair's two rows where its accumulator holds them.
  static __m512 pair_scales(const uint8_t *block, int pair) {
    __m512 both = _mm512_castpd_ps(_mm512_set1_pd(read_unaligned<double>(block + BLOCK_BYTES_INT8 + pair * 8)));
    return _mm512_permute_ps(both, 0x50);
  }

  // The sums of up to EXACT_COLUMNS columns of one scale, then added as floats.
  template <int BLOCKS, int TOKENS>
  void add_columns(const uint8_t *block, const int16_t *row, long columns, __m512 (*total)[TOKENS][4]) const {
    __m512i part[BLOCKS][TOKENS][4] = {};
    for (long done = 0; done < columns; done += BLOCK_COLUMNS)
#pragma GCC unroll 4
      for (int b = 0; b < BLOCKS; b++)
        add_block<TOKENS>(block + b * block_row() + done / BLOCK_COLUMNS * BYTES, row + done, part[b]);
    for (int b = 0; b < BLOCKS; b++)
      for (int pair = 0; pair < 4; pair++) {
        __m512 scales = BLOCK_SCALES ? pair_scales(block + b * block_row(), pair) : _mm512_set1_ps(1);
        for (int t = 0; t < TOKENS; t++)
          total[b][t][pair] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[b][t][pair]), scales, total[b][t][pair]);
      }
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    const uint8_t *block = weight.data + row_block * block_row();
    const int16_t *row = x.row<int16_t>(token);
    __m512 total[BLOCKS][TOKENS][4] = {};
    for (long done = 0; done < x.stride; done += STEP) {
      long left = x.stride - done, columns = left < STEP ? left : STEP;
      add_columns<BLOCKS, TOKENS>(block + done / BLOCK_COLUMNS * BYTES, row + done, columns, total);
    }
    for (int b = 0; b < BLOCKS; b++)
      for (int t = 0; t < TOKENS; t++) finish(row_block + b, token + t, total[b][t], &sums[b][t]);
  }

  long block_row() const { return x.stride / BLOCK_COLUMNS * BYTES; }

  void finish(long row_block, long token, const __m512 *total, RowSums *sums) const {
    __m256 scale = _mm256_set1_ps(x.scales[token]);
    if constexpr (!BLOCK_SCALES)
      scale = _mm256_mul_ps(scale, read_unaligned<__m256>(row_scales + row_block * BLOCK_ROWS * 4));
    _mm256_store_ps(sums->row, _mm256_mul_ps(sums_of_pairs(total), scale));
  }
};

// A cell is 8 rows x 4 columns: 64-bit lane r of an accumulator is row r's.
struct DenseInt8Tile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 1, 1};
  const Weight &weight;
  const Panel &x;
  Prefetcher prefetcher;
  __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);

  // The integer sums of a block, exact in however many chains, then added as floats.
  template <int TOKENS>
  void add_block(const uint8_t *block, const int16_t *row, __m512 *total) const {
    constexpr int CHAINS = TOKENS <= 2 ? 4 : TOKENS <= 4 ? 2 : 1;
    for (int line = 0; line < BLOCK_BYTES_DENSE_INT8; line += 64) prefetcher.prefetch<TOKENS <= 1>(block + line);
    __m512i part[TOKENS][CHAINS] = {};
#pragma GCC unroll 16
    for (int cell = 0; cell < 16; cell++) {
      __m512i values = _mm512_cvtepi8_epi16(read_unaligned<__m256i>(block + cell * 32));
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; t++) {
        __m512i columns = _mm512_set1_epi64(read_unaligned<long long>(row + t * x.stride + cell * 4));
        part[t][cell % CHAINS] = dot_int16(part[t][cell % CHAINS], values, columns);
      }
    }
    __m256 scales = read_unaligned<__m256>(block + BLOCK_VALUES);
    __m512 of_lanes = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(scales));
    for (int t = 0; t < TOKENS; t++) {
      for (int chain = 1; chain < CHAINS; chain++) part[t][0] = _mm512_add_epi32(part[t][0], part[t][chain]);
      total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[t][0]), of_lanes, total[t]);
    }
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    const uint8_t *block = weight.data + row_block * (x.stride / BLOCK_COLUMNS) * BLOCK_BYTES_DENSE_INT8;
    const int16_t *row = x.row<int16_t>(token), *end = row + x.stride;
    __m512 total[TOKENS] = {};
    for (; row < end; row += BLOCK_COLUMNS, block += BLOCK_BYTES_DENSE_INT8) add_block<TOKENS>(block, row, total);
    for (int t = 0; t < TOKENS; t++)
      _mm256_store_ps(sums[0][t].row, _mm256_mul_ps(sums_of_lanes(total[t]), _mm256_set1_ps(x.scales[token + t])));
  }

  static __m256 sums_of_lanes(__m512 total) {
    __m512 both = _mm512_add_ps(total, _mm512_permute_ps(total, 0xb1));
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(even, both));
  }
};

template <class Use>
inline void with_int8_tile(const Weight &weight, const Panel &x, Use use) {
  if (weight.kind == DENSE_INT8) return use(DenseInt8Tile{weight, x, {}});
  if (weight.kind == SPARSE_INT8) return use(Int8Tile<false>{weight, x, row_scales_of(weight), {}, {}});
  use(Int8Tile<true>{weight, x, nullptr, {}, {}});
}

}  // namespace
