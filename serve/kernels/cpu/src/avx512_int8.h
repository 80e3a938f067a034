// int8 2:4 weights with AVX-512: 16-bit integer activations, exact integer sums, one scale for each row or block.
// Included by both AVX-512 files; __AVX512VBMI__ and __AVX512VNNI__ choose the shorter instructions.
#pragma once
#include "activations.h"
#include "avx512_sums.h"

namespace {

// Turns the positions of half a cell (2 rows x 32 columns, 8 bytes) into vpermw indices or their equal.
struct Int8Picks {
#ifdef __AVX512VBMI__
  __m512i bits, group_start;
  __m512i three = _mm512_set1_epi16(3);

  Int8Picks() {
    alignas(64) uint8_t bit[64];
    alignas(64) uint16_t start[32];
    for (int word = 0; word < 32; word++) {  // 128-bit lanes of 8 columns: row 0 keeps 4 words, row 1 keeps 4
      int lane = word >> 3, row = (word >> 2) & 1, kept = word & 3;
      bit[2 * word] = bit[2 * word + 1] = static_cast<uint8_t>(lane * 16 + row * 8 + kept * 2);
      start[word] = static_cast<uint16_t>(lane * 8 + (kept >> 1) * 4);
    }
    bits = _mm512_load_si512(bit);
    group_start = _mm512_load_si512(start);
  }

  __m512i operator()(const uint8_t *positions) const {
    __m512i codes = _mm512_multishift_epi64_epi8(bits, _mm512_set1_epi64(read_unaligned<long long>(positions)));
    return _mm512_ternarylogic_epi32(codes, three, group_start, 0xea);  // codes & 3 | group_start
  }

  static __m512i pick(__m512i index, __m512i columns) { return _mm512_permutexvar_epi16(index, columns); }
#else
  __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  __m512i odd_group = _mm512_set1_epi64(0x0808080800000000);
  __m512i bytes;  // for each nibble the four bytes that pick its two 16-bit columns of a group

  Int8Picks() {
    alignas(64) uint32_t table[16];
    for (uint32_t nibble = 0; nibble < 16; nibble++) {
      uint32_t first = (nibble & 3) * 2, second = (nibble >> 2) * 2;
      table[nibble] = first | (first + 1) << 8 | second << 16 | (second + 1) << 24;
    }
    bytes = _mm512_load_si512(table);
  }

  __m512i operator()(const uint8_t *positions) const {
    __m512i both = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(positions)));
    __m512i nibbles = _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, both), shifts);
    return _mm512_or_si512(_mm512_permutexvar_epi32(nibbles, bytes), odd_group);
  }

  static __m512i pick(__m512i index, __m512i columns) { return _mm512_shuffle_epi8(columns, index); }
#endif
};

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
  static constexpr int CHUNK = 4, AHEAD = 8192;
  static constexpr int BYTES = BLOCK_SCALES ? BLOCK_BYTES_INT8_SCALED : BLOCK_BYTES_INT8;
  const Product &job;
  const Quantised &quantised;
  const uint8_t *row_scales;  // unless BLOCK_SCALES
  Int8Picks picks;

  // Adds one block to the integer sums of each pair.
  template <int TOKENS>
  void add_block(const uint8_t *block, const int16_t *x, __m512i (*total)[4]) const {
    prefetch(block + AHEAD);
#pragma GCC unroll 8
    for (int half_cell = 0; half_cell < 8; half_cell++) {  // [pair][column half]
      const uint8_t *values = block + POSITION_BYTES + half_cell * 32;
      if (!(half_cell & 1)) prefetch(values + AHEAD);
      __m512i index = picks(block + half_cell * 8);
      __m512i weight = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values)));
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; t++) {
        __m512i columns = _mm512_loadu_si512(x + t * quantised.x.stride + (half_cell & 1) * 32);
        __m512i &sum = total[t][half_cell >> 1];
        sum = dot_int16(sum, weight, picks.pick(index, columns));
      }
    }
  }

  // The scales of a pair's two rows where its accumulator holds them.
  static __m512 pair_scales(const uint8_t *block, int pair) {
    __m512 both = _mm512_castpd_ps(_mm512_set1_pd(read_unaligned<double>(block + BLOCK_BYTES_INT8 + pair * 8)));
    return _mm512_permute_ps(both, 0x50);
  }

  template <int TOKENS>
  void add_scaled_block(const uint8_t *block, const int16_t *x, __m512 (*total)[4]) const {
    __m512i part[TOKENS][4] = {};
    add_block<TOKENS>(block, x, part);
    for (int pair = 0; pair < 4; pair++) {
      __m512 scales = pair_scales(block, pair);
      for (int t = 0; t < TOKENS; t++)
        total[t][pair] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[t][pair]), scales, total[t][pair]);
    }
  }

  template <int TOKENS>
  void add_columns(const uint8_t *block, const int16_t *x, long columns, __m512 (*total)[4]) const {
    __m512i part[TOKENS][4] = {};
    for (long column = 0; column < columns; column += BLOCK_COLUMNS, block += BYTES)
      add_block<TOKENS>(block, x + column, part);
    for (int t = 0; t < TOKENS; t++)
      for (int pair = 0; pair < 4; pair++)
        total[t][pair] = _mm512_add_ps(total[t][pair], _mm512_cvtepi32_ps(part[t][pair]));
  }

  template <int TOKENS>
  void sum(long row_block, long token, RowSums *sums) const {
    long stride = quantised.x.stride;
    const uint8_t *block = job.weight + row_block * (stride / BLOCK_COLUMNS) * BYTES;
    const int16_t *x = quantised.x.rows + token * stride;
    __m512 total[TOKENS][4] = {};
    constexpr long STEP = BLOCK_SCALES ? BLOCK_COLUMNS : EXACT_COLUMNS;
    for (long column = 0; column < stride; column += STEP, block += STEP / BLOCK_COLUMNS * BYTES)
      if constexpr (BLOCK_SCALES)
        add_scaled_block<TOKENS>(block, x + column, total);
      else
        add_columns<TOKENS>(block, x + column, stride - column < STEP ? stride - column : STEP, total);
    for (int t = 0; t < TOKENS; t++) finish(row_block, token + t, total[t], sums + t);
  }

  void finish(long row_block, long token, const __m512 *total, RowSums *sums) const {
    __m256 scale = _mm256_set1_ps(quantised.scales.rows[token]);
    if constexpr (!BLOCK_SCALES)
      scale = _mm256_mul_ps(scale, read_unaligned<__m256>(row_scales + row_block * BLOCK_ROWS * 4));
    _mm256_store_ps(sums->row, _mm256_mul_ps(sums_of_pairs(total), scale));
  }
};

template <class In>
inline int multiply_int8(const Product &job) {
  Quantised x(job);
  if (!x.fill<In>(job)) return -1;
  long blocks = blocks_over(job.rows, BLOCK_ROWS) * blocks_over(job.columns, BLOCK_COLUMNS);
  if (job.kind == SPARSE_INT8)
    multiply(Int8Tile<false>{job, x, job.weight + blocks * BLOCK_BYTES_INT8, {}}, job);
  else
    multiply(Int8Tile<true>{job, x, nullptr, {}}, job);
  return 0;
}

}  // namespace
