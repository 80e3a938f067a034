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
        prefetch_ahead(dense[r] + column, x.stride);
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

// Turns the positions of half an int8 cell (4 rows x 8 columns, 4 bytes) into bytes for vpshufb. Each 128-bit lane is
// two rows and has all 8 columns of x.
struct Int8Picks {
  __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  __m256i odd_group = _mm256_set1_epi64x(0x0808080800000000);
  __m256i bytes;  // for each of the 6 positions the four bytes that pick two 16-bit columns of a group

  Int8Picks() {
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

  __m256i operator()(const uint8_t *positions) const {
    __m256i codes = _mm256_set1_epi32(static_cast<int>(hashed(read_unaligned<uint32_t>(positions))));
    return _mm256_or_si256(_mm256_permutevar8x32_epi32(bytes, _mm256_srlv_epi32(codes, shifts)), odd_group);
  }
};

// Half of the rows of a cell have an accumulator, each 64 bits of it.
template <bool SPARSE, bool BLOCK_SCALES>
struct Int8Tile {
  static constexpr int CHUNK = 4, CHUNK_OF_MANY = 4, WIDE[] = {0, 1, 1};
  using Block = Int8Block<SPARSE, BLOCK_SCALES>;
  const Weight &weight;
  const Panel &x;
  const uint8_t *row_scales;  // unless BLOCK_SCALES
  Int8Picks picks;
  Prefetcher prefetcher;

  // What the values of half a cell are multiplied by.
  static __m256i columns(const int16_t *row, __m256i index) {
    if constexpr (!SPARSE) return _mm256_set1_epi64x(read_unaligned<long long>(row));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(read_unaligned<__m128i>(row)), index);
  }

  // The integer sums of half a block, then added as floats.
  template <int TOKENS>
  void add_half_block(const uint8_t *block, const int16_t *row, int half, __m256 (*total)[2]) const {
    __m256i part[TOKENS] = {};
#pragma GCC unroll 16
    for (int cell = 0; cell < Block::CELLS; cell++) {
      const uint8_t *at = block + Block::VALUES + cell * CELL_VALUES + half * CELL_VALUES / 2;
      __m256i values = _mm256_cvtepi8_epi16(read_unaligned<__m128i>(at));
      __m256i index = SPARSE ? picks(block + cell * BLOCK_ROWS + half * BLOCK_ROWS / 2) : values;
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; t++) {
        __m256i chosen = columns(row + t * x.stride + cell * Block::CELL_COLUMNS, index);
        part[t] = _mm256_add_epi32(part[t], _mm256_madd_epi16(values, chosen));
      }
    }
    const __m256 scales = BLOCK_SCALES ? scales_of_lanes(block + Block::SCALES + half * 16) : _mm256_set1_ps(1);
    for (int t = 0; t < TOKENS; t++)
      total[t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[t]), scales, total[t][half]);
  }

  static __m256 scales_of_lanes(const uint8_t *four) {
    return _mm256_moveldup_ps(_mm256_castsi256_ps(_mm256_cvtepu32_epi64(read_unaligned<__m128i>(four))));
  }

  template <int BLOCKS, int TOKENS>
  void sum(long row_block, long token, RowSums (*sums)[TOKENS]) const {
    static_assert(BLOCKS == 1);
    const uint8_t *block = weight.data + row_block * (x.stride / BLOCK_COLUMNS) * Block::BYTES;
    const int16_t *row = x.row<int16_t>(token), *end = row + x.stride;
    __m256 total[TOKENS][2] = {};
    for (; row < end; row += BLOCK_COLUMNS, block += Block::BYTES) {
      for (int line = 0; line < Block::BYTES; line += 64) prefetcher.prefetch<TOKENS == 1>(block + line);
      for (int half = 0; half < 2; half++) add_half_block<TOKENS>(block, row, half, total);
    }
    for (int t = 0; t < TOKENS; t++) finish(row_block, token + t, total[t], &sums[0][t]);
  }

  void finish(long row_block, long token, const __m256 *total, RowSums *sums) const {
    for (int r = 0; r < BLOCK_ROWS; r++) {
      float row_scale = BLOCK_SCALES ? 1 : read_unaligned<float>(row_scales + (row_block * BLOCK_ROWS + r) * 4);
      sums->row[r] = (total[r / 4][r % 4 * 2] + total[r / 4][r % 4 * 2 + 1]) * (x.scales[token] * row_scale);
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
    with_int8_tile<Int8Tile>(weight, x, use);
  }
};

}  // namespace

const Kernels avx2_kernels = {"avx2", multiply<Avx2, uint16_t>, multiply<Avx2, float>, expand_portably,
                              draw_tokens,
                              score_tokens, run_step<Avx2>, attend_layer};
