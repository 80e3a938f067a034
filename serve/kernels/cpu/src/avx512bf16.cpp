// AVX-512 with BF16, VBMI and VNNI (Sapphire Rapids, Zen 4 and newer): bfloat16 x by vpermw and vdpbf16ps.
#include "activations.h"
#include "avx512_int8.h"
#include "avx512_sums.h"

namespace {

constexpr int AHEAD = 8192;  // bytes; measured: less leaves the memory idle, more gains nothing

inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Turns the 2-bit positions of a cell into vpermw indices: group of the word * 4 + position.
struct Indices {
  __m512i bits, group_start;
  __m512i three = _mm512_set1_epi16(3);

  Indices() {
    alignas(64) uint8_t bit[64];
    alignas(64) uint16_t start[32];
    for (int word = 0; word < 32; word++) {  // layout.h draws this
      int half_word = word & 1, lane = (word >> 1) & 7, b = word >> 4;
      bit[2 * word] = bit[2 * word + 1] = static_cast<uint8_t>(b * 32 + half_word * 16 + lane * 2);
      start[word] = static_cast<uint16_t>((b * 4 + half_word * 2 + (lane >> 2)) * 4);
    }
    bits = _mm512_load_si512(bit);
    group_start = _mm512_load_si512(start);
  }

  __m512i operator()(const uint8_t *positions) const {
    __m512i codes = _mm512_multishift_epi64_epi8(bits, _mm512_set1_epi64(read_unaligned<long long>(positions)));
    return _mm512_ternarylogic_epi32(codes, three, group_start, 0xea);  // codes & 3 | group_start
  }
};

struct SparseTile {
  static constexpr int CHUNK = 4;
  const Product &job;
  const Panel<uint16_t> &x;
  Indices indices;

  template <int TOKENS>
  void sum(long row_block, long token, RowSums *sums) const {
    const uint8_t *block = job.weight + row_block * (x.stride / BLOCK_COLUMNS) * BLOCK_BYTES_BF16;
    const uint16_t *row = x.rows + token * x.stride, *end = row + x.stride;
    __m512 total[TOKENS][4] = {};
    for (; row < end; row += BLOCK_COLUMNS, block += BLOCK_BYTES_BF16) {
      prefetch(block + AHEAD);
#pragma GCC unroll 8
      for (int cell = 0; cell < 8; cell++) {  // [column half][pair]
        const uint8_t *values = block + POSITION_BYTES + cell * 64;
        prefetch(values + AHEAD);
        __m512i index = indices(block + cell * 8), weight = _mm512_loadu_si512(values);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
          __m512i columns = _mm512_loadu_si512(row + t * x.stride + (cell >> 2) * 32);
          total[t][cell & 3] = dot(total[t][cell & 3], weight, _mm512_permutexvar_epi16(index, columns));
        }
      }
    }
    for (int t = 0; t < TOKENS; t++) _mm256_store_ps(sums[t].row, sums_of_pairs(total[t]));
  }
};

struct DenseTile {
  static constexpr int CHUNK = 4;
  const Product &job;
  const Panel<uint16_t> &x;

  // ROWS at a time from `first`, so that the accumulators stay in registers.
  template <int TOKENS, int ROWS>
  void rows(const DenseRows &weight, int first, const uint16_t *x_row, __m512 (*total)[BLOCK_ROWS]) const {
    __m512 part[TOKENS][ROWS] = {};
    for (long column = 0; column < x.stride; column += 32)
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const uint16_t *values = weight.row[first + r] + column;
        prefetch(reinterpret_cast<const char *>(values) + 1024);
        __m512i w = _mm512_loadu_si512(values);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
          part[t][r] = dot(part[t][r], w, _mm512_loadu_si512(x_row + t * x.stride + column));
      }
    for (int t = 0; t < TOKENS; t++)
      for (int r = 0; r < ROWS; r++) total[t][first + r] = part[t][r];
  }

  template <int TOKENS>
  void sum(long row_block, long token, RowSums *sums) const {
    constexpr int ROWS = TOKENS <= 2 ? 8 : 4;
    DenseRows weight(job, row_block, x.stride);
    __m512 total[TOKENS][BLOCK_ROWS];
    for (int first = 0; first < BLOCK_ROWS; first += ROWS)
      rows<TOKENS, ROWS>(weight, first, x.rows + token * x.stride, total);
    for (int t = 0; t < TOKENS; t++) _mm256_store_ps(sums[t].row, sums_of_rows(total[t]));
  }
};

int multiply_bf16(const Product *job) {
  if (job->kind == SPARSE_INT8 || job->kind == SPARSE_INT8_BLOCK_SCALES) return multiply_int8<uint16_t>(*job);
  Panel<uint16_t> x(*job);
  if (!fill_bf16(*job, &x)) return -1;
  if (job->kind == DENSE_BF16)
    multiply(DenseTile{*job, x}, *job);
  else
    multiply(SparseTile{*job, x, {}}, *job);
  return 0;
}

int multiply_f32(const Product *job) {
  if (job->kind == SPARSE_INT8 || job->kind == SPARSE_INT8_BLOCK_SCALES) return multiply_int8<float>(*job);
  return avx512_kernels.multiply_f32(job);  // full float32 accuracy
}

}  // namespace

const Kernels avx512bf16_kernels = {"avx512bf16", multiply_bf16, multiply_f32};
