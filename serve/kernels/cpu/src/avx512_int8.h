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

// 64-bit lane r of an accumulator is row r's. The integer sums of a block are exact, so they may be added in any order;
// then they are added as floats.
template <bool SPARSE, bool BLOCK_SCALES>
struct Int8Tile {
  static constexpr int CHUNK = 8, CHUNK_OF_MANY = 8, WIDE[] = {0, 1, 1};
  using Block = Int8Block<SPARSE, BLOCK_SCALES>;
  const Weight &weight;
  const Panel &x;
  const uint8_t *row_scales;  // unless BLOCK_SCALES
  Int8Picks picks;
  Prefetcher prefetcher;
  __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);

  // What the values of a cell are multiplied by.
  __m512i columns(const int16_t *row, __m512i index) const {
    if constexpr (!SPARSE) return _mm512_set1_epi64(read_unaligned<long long>(row));
    return picks.pick(index, _mm512_broadcast_i32x4(read_unaligned<__m128i>(row)));
  }

  template <int TOKENS>
  void add_block(const uint8_t *block, const int16_t *row, __m512 *total) const {
    constexpr int CHAINS = TOKENS <= 2 ? 4 : TOKENS <= 4 ? 2 : 1;
    for (int line = 0; line < Block::BYTES; line += 64) prefetcher.prefetch<TOKENS <= 1>(block + line);
    __m512i part[TOKENS][CHAINS] = {};
#pragma GCC unroll 16
    for (int cell = 0; cell < Block::CELLS; cell++) {
      __m512i values = _mm512_cvtepi8_epi16(read_unaligned<__m256i>(block + Block::VALUES + cell * CELL_VALUES));
      __m512i index = SPARSE ? picks(block + cell * BLOCK_ROWS) : values;
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; t++) {
        __m512i &sum = part[t][cell % CHAINS];
        sum = dot_int16(sum, values, columns(row + t * x.stride + cell * Block::CELL_COLUMNS, index));
      }
    }
    const __m512 scales = BLOCK_SCALES ? scales_of_lanes(block + Block::SCALES) : _mm512_set1_ps(1);
    for (int t = 0; t < TOKENS; t++) {
      for (int chain = 1; chain < CHAINS; chain++) part[t][0] = _mm512_add_epi32(part[t][0], part[t][chain]);
      total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[t][0]), scales, total[t]);
    }
  }

  __m512 scales_of_lanes(const uint8_t *scales) const {
    return _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(read_unaligned<__m256>(scales)));
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    const uint8_t *block = weight.data + row_block * (x.stride / BLOCK_COLUMNS) * Block::BYTES;
    const int16_t *row = x.row<int16_t>(token), *end = row + x.stride;
    __m512 total[TOKENS] = {};
    for (; row < end; row += BLOCK_COLUMNS, block += Block::BYTES) add_block<TOKENS>(block, row, total);
    for (int t = 0; t < TOKENS; t++) finish(row_block, token + t, total[t], &sums[0][t]);
  }

  void finish(long row_block, long token, __m512 total, RowSums *sums) const {
    __m256 scale = _mm256_set1_ps(x.scales[token]);
    if constexpr (!BLOCK_SCALES)
      scale = _mm256_mul_ps(scale, read_unaligned<__m256>(row_scales + row_block * BLOCK_ROWS * 4));
    _mm256_store_ps(sums->row, _mm256_mul_ps(sums_of_lane_pairs(total), scale));
  }
};

}  // namespace
