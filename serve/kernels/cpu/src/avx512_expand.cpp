// Expands device layouts to dense with AVX-512 VBMI and BF16.
#include "avx512_picks.h"
#include "expand.h"

namespace {

// 32 dense values of one row from 32 words, which hold them for two parts: for each column the two words that its group
// keeps, and whether one of them belongs there. `index` holds for each word the column it belongs to.
struct WordSpreader {
  __m512i first[2], second[2], own[2];  // by part; of its columns the words, and the numbers in `index`

  WordSpreader(int (*word_of)(int part, int group), int to_second, int columns_of_part) {
    alignas(64) uint16_t words[32], columns[32];
    for (int part = 0; part < 2; part++) {
      for (int column = 0; column < 32; column++) {
        words[column] = static_cast<uint16_t>(word_of(part, column >> 2));
        columns[column] = static_cast<uint16_t>(part * columns_of_part + column);
      }
      first[part] = _mm512_load_si512(words);
      second[part] = _mm512_add_epi16(first[part], _mm512_set1_epi16(static_cast<short>(to_second)));
      own[part] = _mm512_load_si512(columns);
    }
  }

  __m512i operator()(__m512i words, __m512i index, int part) const {
    __mmask32 is_first = _mm512_cmpeq_epi16_mask(_mm512_permutexvar_epi16(first[part], index), own[part]);
    __mmask32 is_second = _mm512_cmpeq_epi16_mask(_mm512_permutexvar_epi16(second[part], index), own[part]);
    __m512i dense = _mm512_maskz_permutexvar_epi16(is_first, first[part], words);
    return _mm512_mask_permutexvar_epi16(dense, is_second, second[part], words);
  }
};

// The first word of a group. bfloat16: a cell has two rows, the parts. int8: a row has two halves.
int bf16_word_of(int row, int group) { return (group >> 2) * 16 + (group & 1) * 8 + row * 4 + ((group >> 1) & 1); }
int int8_word_of(int half, int group) { return half * 16 + group * 2; }

// The columns of what a row keeps of a block of int8: 64-bit lane i has the 4 values of columns 8 i to 8 i + 7.
struct RowPicks {
  __m512i bits, group_start;

  RowPicks() {
    alignas(64) uint8_t bit[64];
    alignas(64) uint16_t start[32];
    for (int word = 0; word < 32; word++) {
      bit[2 * word] = bit[2 * word + 1] = static_cast<uint8_t>((word & 3) * 2);
      start[word] = static_cast<uint16_t>((word >> 1) * 4);
    }
    bits = _mm512_load_si512(bit);
    group_start = _mm512_load_si512(start);
  }

  __m512i operator()(const uint8_t *block, int row) const {
    __m512i of_row = _mm512_add_epi8(bits, _mm512_set1_epi8(static_cast<char>(row * 8)));
    __m512i codes = _mm512_multishift_epi64_epi8(of_row, _mm512_loadu_si512(block));
    return _mm512_ternarylogic_epi32(codes, _mm512_set1_epi16(3), group_start, 0xea);  // codes & 3 | group_start
  }
};

inline __m256i low_words(__m512i words) { return _mm512_castsi512_si256(words); }
inline __m256i high_words(__m512i words) { return _mm512_extracti64x4_epi64(words, 1); }

inline void store_bf16(__m512i dense, uint16_t *to) { _mm512_storeu_si512(to, dense); }
inline void store_bf16(__m512i dense, float *to) {
  _mm512_storeu_si512(to, _mm512_slli_epi32(_mm512_cvtepu16_epi32(low_words(dense)), 16));
  _mm512_storeu_si512(to + 16, _mm512_slli_epi32(_mm512_cvtepu16_epi32(high_words(dense)), 16));
}

inline void store_floats(__m512 low, __m512 high, uint16_t *to) {
  _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}
inline void store_floats(__m512 low, __m512 high, float *to) {
  _mm512_storeu_ps(to, low);
  _mm512_storeu_ps(to + 16, high);
}

template <class Out>
inline void store_scaled(__m512i dense, float scale, Out *to) {
  __m512 scales = _mm512_set1_ps(scale);
  __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(low_words(dense)));
  __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(high_words(dense)));
  store_floats(_mm512_mul_ps(low, scales), _mm512_mul_ps(high, scales), to);
}

struct VectorBlockRow {
  Bf16Picks bf16_picks;
  RowPicks int8_picks;
  WordSpreader bf16_spread{bf16_word_of, 2, 0}, int8_spread{int8_word_of, 1, 32};
  __m256i cells = _mm256_setr_epi32(0, 32, 64, 96, 128, 160, 192, 224);

  template <class Out>
  void bf16(const uint8_t *block, int row, Out *to) const {
    for (int half = 0; half < 2; half++) {
      int cell = half * 4 + (row >> 1);
      __m512i words = _mm512_loadu_si512(block + POSITION_BYTES + cell * 64);
      store_bf16(bf16_spread(words, bf16_picks(block + cell * 8), row & 1), to + half * 32);
    }
  }

  template <class Out>
  void int8(const uint8_t *block, int row, float scale, Out *to) const {
    const int *values = reinterpret_cast<const int *>(block + POSITION_BYTES + row * 4);
    __m512i words = _mm512_cvtepi8_epi16(_mm256_i32gather_epi32(values, cells, 1));
    __m512i index = int8_picks(block, row);
    for (int half = 0; half < 2; half++) store_scaled(int8_spread(words, index, half), scale, to + half * 32);
  }
};

}  // namespace

extern "C" void expand_avx512(const Expansion *job) { expand_with(VectorBlockRow(), job); }
