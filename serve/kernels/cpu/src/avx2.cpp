// AVX2 and FMA (Haswell, Zen and newer): the same bytes with half the vector width.
#include <immintrin.h>

#include "activations.h"
#include "driver.h"
#include "forward.h"
#include "layer_attention.h"
#include "scoring.h"
#include "prefetch.h"

namespace {

constexpr long SPAN = 4 * BLOCK_COLUMNS;  // columns that all pairs go through before the next: they stay in L1

inline __m256i broadcast32(const uint8_t *from) { return _mm256_set1_epi32(read_unaligned<int>(from)); }

inline __m256i load_bytes(const void *from) { return _mm256_loadu_si256(static_cast<const __m256i *>(from)); }

// Half-words of 32-bit lanes as floats. A bfloat16 is the upper half of a float32.
inline __m256 low_half_words(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 high_half_words(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}

// Two accumulators, one for each pair of rows; bit 1 of a 32-bit lane's index tells the row.
inline __m128 sums_of_two_pairs(__m256 first, __m256 second) {
  __m256 adjacent = _mm256_hadd_ps(first, second);
  return _mm_add_ps(_mm256_castps256_ps128(adjacent), _mm256_extractf128_ps(adjacent, 1));
}

// Four accumulators, one for each row.
inline __m128 sums_of_four_rows(const __m256 *row) {
  __m256 both = _mm256_hadd_ps(_mm256_hadd_ps(row[0], row[1]), _mm256_hadd_ps(row[2], row[3]));
  return _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
}

inline void place_natural(const float *from, float *to) { memcpy(to, from, 32 * sizeof(float)); }

// Of every 16 columns the even ones, then the odd ones.
inline void place_dense(const float *from, float *to) {
  for (int sixteen = 0; sixteen < 32; sixteen += 16)
    for (int i = 0; i < 8; i++) {
      to[sixteen + i] = from[sixteen + 2 * i];
      to[sixteen + 8 + i] = from[sixteen + 2 * i + 1];
    }
}

struct SparseTile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 1, 1};
  const Weight &weight;
  const Panel &x;
  Prefetcher prefetcher;
  __m256i low_shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
  __m256i high_shifts = _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30);

  // Half a cell: 2 rows x 16 columns.
  template <int TOKENS>
  void add_half_cell(const uint8_t *positions, const uint8_t *values, const float *row, __m256 *total) const {
    __m256i codes = broadcast32(positions), pairs = load_bytes(values);
    __m256i low_codes = _mm256_srlv_epi32(codes, low_shifts), high_codes = _mm256_srlv_epi32(codes, high_shifts);
    __m256 low = low_half_words(pairs), high = high_half_words(pairs);
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) {
      const float *columns = row + t * x.stride;
      total[t] = _mm256_fmadd_ps(low, _mm256_permutevar_ps(_mm256_loadu_ps(columns), low_codes), total[t]);
      total[t] = _mm256_fmadd_ps(high, _mm256_permutevar_ps(_mm256_loadu_ps(columns + 8), high_codes), total[t]);
    }
  }

  // PAIRS pairs at a time from `first`, so that the accumulators stay in registers.
  template <int TOKENS, int PAIRS>
  void pairs(const uint8_t *block, const float *row, long columns, int first, __m256 (*sums)[TOKENS]) const {
    __m256 total[PAIRS][TOKENS];
    memcpy(total, sums + first, sizeof total);
    for (const float *end = row + columns; row < end; row += BLOCK_COLUMNS, block += BLOCK_BYTES_BF16) {
      if (first == 0)
        for (int line = 0; line < BLOCK_BYTES_BF16; line += 64) prefetcher.prefetch<TOKENS == 1>(block + line);
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++)
#pragma GCC unroll 4
        for (int pair = 0; pair < PAIRS; pair++) {
          int cell = half * 4 + first + pair;
          const uint8_t *positions = block + cell * 8, *values = block + POSITION_BYTES + cell * 64;
          add_half_cell<TOKENS>(positions, values, row + half * 32, total[pair]);
          add_half_cell<TOKENS>(positions + 4, values + 32, row + half * 32 + 16, total[pair]);
        }
    }
    memcpy(sums + first, total, sizeof total);
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    constexpr int PAIRS = TOKENS == 1 ? 4 : TOKENS == 2 ? 2 : 1;
    const uint8_t *block = weight.data + row_block * (x.stride / BLOCK_COLUMNS) * BLOCK_BYTES_BF16;
    const float *row = x.row<float>(token);
    __m256 total[4][TOKENS] = {};
    for (long done = 0; done < x.stride; done += SPAN, block += SPAN / BLOCK_COLUMNS * BLOCK_BYTES_BF16)
      for (int first = 0; first < 4; first += PAIRS)
        pairs<TOKENS, PAIRS>(block, row + done, x.stride - done < SPAN ? x.stride - done : SPAN, first, total);
    for (int t = 0; t < TOKENS; t++) {
      _mm_store_ps(sums[0][t].row, sums_of_two_pairs(total[0][t], total[1][t]));
      _mm_store_ps(sums[0][t].row + 4, sums_of_two_pairs(total[2][t], total[3][t]));
    }
  }
};

struct DenseTile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 1, 1};
  const Weight &weight;
  const Panel &x;

  const uint16_t *weight_row(long row) const {  // past the last row the last again, whose sums nobody stores
    return reinterpret_cast<const uint16_t *>(weight.data) + (row < weight.rows ? row : weight.rows - 1) * x.stride;
  }

  template <int TOKENS, int ROWS>
  void rows(long row, const float *x_row, __m256 (*sums)[BLOCK_ROWS], int first) const {
    __m256 total[TOKENS][ROWS] = {};
    const uint16_t *dense[ROWS];
    for (int r = 0; r < ROWS; r++) dense[r] = weight_row(row + first + r);
    for (long column = 0; column < x.stride; column += 16)
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        prefetch_next_block(dense[r] + column, x.stride);
        __m256i pairs = load_bytes(dense[r] + column);
        __m256 low = low_half_words(pairs), high = high_half_words(pairs);
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; t++) {
          const float *columns = x_row + t * x.stride + column;
          total[t][r] = _mm256_fmadd_ps(low, _mm256_loadu_ps(columns), total[t][r]);
          total[t][r] = _mm256_fmadd_ps(high, _mm256_loadu_ps(columns + 8), total[t][r]);
        }
      }
    for (int t = 0; t < TOKENS; t++) memcpy(sums[t] + first, total[t], sizeof total[t]);
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    constexpr int ROWS = TOKENS == 1 ? 8 : TOKENS == 2 ? 4 : 2;
    __m256 total[TOKENS][BLOCK_ROWS];
    for (int first = 0; first < BLOCK_ROWS; first += ROWS)
      rows<TOKENS, ROWS>(row_block * BLOCK_ROWS, x.row<float>(token), total, first);
    for (int t = 0; t < TOKENS; t++) {
      _mm_store_ps(sums[0][t].row, sums_of_four_rows(total[t]));
      _mm_store_ps(sums[0][t].row + 4, sums_of_four_rows(total[t] + 4));
    }
  }
};

// ---- int8 weights: 16-bit integer activations, exact integer sums

template <bool BLOCK_SCALES>
struct Int8Tile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 1, 1};
  static constexpr int BYTES = BLOCK_SCALES ? int{BLOCK_BYTES_INT8_SCALED} : int{BLOCK_BYTES_INT8};
  const Weight &weight;
  const Panel &x;
  const uint8_t *row_scales;  // unless BLOCK_SCALES
  Prefetcher prefetcher;
  __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  __m256i odd_group = _mm256_set1_epi64x(0x0808080800000000);
  __m256i bytes;  // for each of the 6 positions the four bytes that pick two 16-bit columns of a group

  Int8Tile(const Weight &int8_weight, const Panel &panel, const uint8_t *scales)
      : weight(int8_weight), x(panel), row_scales(scales) {
    alignas(32) uint32_t table[8] = {};
    constexpr uint32_t VALID[] = {4, 8, 9, 12, 13, 14};
    for (uint32_t nibble : VALID) {
      uint32_t first = (nibble & 3) * 2, second = (nibble >> 2) * 2;
      table[hashed(nibble) & 7] = first | (first + 1) << 8 | second << 16 | (second + 1) << 24;
    }
    bytes = _mm256_load_si256(reinterpret_cast<const __m256i *>(table));
  }

  // vpermd looks at 3 bits only; n ^ n >> 1 tells the 6 valid nibbles apart by 3 bits.
  static constexpr uint32_t hashed(uint32_t nibbles) { return nibbles ^ nibbles >> 1; }

  // 2 rows x 16 columns.
  template <int TOKENS>
  void add_quarter_cell(const uint8_t *positions, const uint8_t *values, const int16_t *row, __m256i *total) const {
    __m256i codes = _mm256_set1_epi32(static_cast<int>(hashed(read_unaligned<uint32_t>(positions))));
    codes = _mm256_permutevar8x32_epi32(bytes, _mm256_srlv_epi32(codes, shifts));
    __m256i picks = _mm256_or_si256(codes, odd_group);
    __m256i kept = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(values)));
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) {
      __m256i columns = _mm256_shuffle_epi8(load_bytes(row + t * x.stride), picks);
      total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(kept, columns));
    }
  }

  template <int TOKENS>
  void add_cell(const uint8_t *block, const int16_t *row, int pair, __m256i *total) const {
    const uint8_t *positions = block + pair * 16, *values = block + POSITION_BYTES + pair * 64;
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; quarter++)
      add_quarter_cell<TOKENS>(positions + quarter * 4, values + quarter * 16, row + quarter * 16, total);
  }

  // The scales of a pair's two rows where its accumulator holds them.
  static __m256 pair_scales(const uint8_t *block, int pair) {
    if (!BLOCK_SCALES) return _mm256_set1_ps(1);
    __m256 both = _mm256_castpd_ps(_mm256_set1_pd(read_unaligned<double>(block + BLOCK_BYTES_INT8 + pair * 8)));
    return _mm256_permute_ps(both, 0x50);
  }

  // The integer sums of a block, then added as floats.
  template <int TOKENS>
  void add_block(const uint8_t *block, const int16_t *row, __m256 (*total)[TOKENS]) const {
    for (int line = 0; line < BYTES; line += 64) prefetcher.prefetch<TOKENS == 1>(block + line);
    for (int pair = 0; pair < 4; pair++) {
      __m256i part[TOKENS] = {};
      add_cell<TOKENS>(block, row, pair, part);
      __m256 scales = pair_scales(block, pair);
      for (int t = 0; t < TOKENS; t++)
        total[pair][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[t]), scales, total[pair][t]);
    }
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    const uint8_t *block = weight.data + row_block * (x.stride / BLOCK_COLUMNS) * BYTES;
    const int16_t *row = x.row<int16_t>(token);
    __m256 total[4][TOKENS] = {};
    for (long column = 0; column < x.stride; column += BLOCK_COLUMNS, block += BYTES)
      add_block<TOKENS>(block, row + column, total);
    for (int t = 0; t < TOKENS; t++) finish<TOKENS>(row_block, token + t, total, t, &sums[0][t]);
  }

  template <int TOKENS>
  void finish(long row_block, long token, const __m256 (*total)[TOKENS], int t, RowSums *sums) const {
    float scale = x.scales[token];
    _mm_store_ps(sums->row, sums_of_two_pairs(total[0][t], total[1][t]));
    _mm_store_ps(sums->row + 4, sums_of_two_pairs(total[2][t], total[3][t]));
    for (int r = 0; r < BLOCK_ROWS; r++) {
      float row_scale = BLOCK_SCALES ? 1 : read_unaligned<float>(row_scales + (row_block * BLOCK_ROWS + r) * 4);
      sums->row[r] *= scale * row_scale;
    }
  }
};

struct Avx2 {
  template <class In>
  static void fill(long kind, const In *x, long columns, const Panel &to, long token) {
    if (is_int8(kind)) return quantise(x, columns, to, token);
    if (kind == DENSE_BF16) return fill_floats(x, columns, to, token, place_dense);
    fill_floats(x, columns, to, token, place_natural);
  }

  template <class Use>
  static void with_tile(const Weight &weight, const Panel &x, Use use) {
    if (weight.kind == DENSE_BF16) return use(DenseTile{weight, x});
    if (weight.kind == SPARSE_BF16) return use(SparseTile{weight, x, {}});
    if (weight.kind == SPARSE_INT8) return use(Int8Tile<false>(weight, x, row_scales_of(weight)));
    use(Int8Tile<true>(weight, x, nullptr));
  }
};

}  // namespace

const Kernels avx2_kernels = {"avx2", multiply<Avx2, uint16_t>, multiply<Avx2, float>, expand_portably,
                              draw_tokens,
                              score_tokens, run_step<Avx2>, attend_layer};
