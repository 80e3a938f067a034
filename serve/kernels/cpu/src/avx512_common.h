// What the AVX-512 files share: row sums in one order of additions for every number of tokens.
#pragma once
#include <immintrin.h>

#include "driver.h"
#include "prefetch.h"

namespace {

// Adds the four 128-bit lanes of each vector; lane i of the result belongs to vector i.
inline __m512 add_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}

// One accumulator, two lanes for each row.
inline __m256 sums_of_lane_pairs(__m512 row) {
  __m512 both = _mm512_add_ps(row, _mm512_permute_ps(row, 0xb1));
  __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps256(_mm512_permutexvar_ps(even, both));
}

// Four accumulators, one for each pair of rows; bit 1 of a 32-bit lane's index tells the row.
inline __m256 sums_of_pairs(const __m512 *pair) {
  return sums_of_lane_pairs(add_lanes(pair[0], pair[1], pair[2], pair[3]));
}

// Eight accumulators, one for each row.
inline __m256 sums_of_rows(const __m512 *row) {
  __m512 low = add_lanes(row[0], row[1], row[2], row[3]), high = add_lanes(row[4], row[5], row[6], row[7]);
  __m512 both = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xdd));
  both = _mm512_add_ps(both, _mm512_permute_ps(both, 0xb1));
  __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, both));
}

// The rows of a dense weight in a block; past the last row the last row again, whose sums nobody stores.
struct DenseRows {
  const uint16_t *row[BLOCK_ROWS];

  DenseRows(const Weight &weight, long row_block, long stride) {
    const uint16_t *values = reinterpret_cast<const uint16_t *>(weight.data);
    for (int r = 0; r < BLOCK_ROWS; r++) {
      long index = row_block * BLOCK_ROWS + r;
      row[r] = values + (index < weight.rows ? index : weight.rows - 1) * stride;
    }
  }
};

}  // namespace
