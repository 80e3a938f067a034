// Expands device layouts to dense with AVX-512 VBMI and BF16.
#include "avx512_picks.h"
#include "expand.h"

namespace {

// Dense values of one row from a cell of 32 words: for each column the two words that its group keeps, and whether one
// of them belongs there. `index` holds for each word the column it belongs to.
struct WordSpreader {
  __m512i first[2], second[2];  // by row of the pair
  __m512i own;                  // 0, 1, ... 31

  explicit WordSpreader(int (*word_of)(int row, int group), int to_second) {
    alignas(64) uint16_t words[32], columns[32];
    for (int row = 0; row < 2; row++) {
      for (int column = 0; column < 32; column++) {
        words[column] = static_cast<uint16_t>(word_of(row, column >> 2));
        columns[column] = static_cast<uint16_t>(column);
      }
      first[row] = _mm512_load_si512(words);
      second[row] = _mm512_add_epi16(first[row], _mm512_set1_epi16(static_cast<short>(to_second)));
    }
    own = _mm512_load_si512(columns);
  }

  __m512i operator()(__m512i words, __m512i index, int row) const {
    __mmask32 is_first = _mm512_cmpeq_epi16_mask(_mm512_permutexvar_epi16(first[row], index), own);
    __mmask32 is_second = _mm512_cmpeq_epi16_mask(_mm512_permutexvar_epi16(second[row], index), own);
    __m512i dense = _mm512_maskz_permutexvar_epi16(is_first, first[row], words);
    return _mm512_mask_permutexvar_epi16(dense, is_second, second[row], words);
  }
};

int bf16_word_of(int row, int group) { return (group >> 2) * 16 + (group & 1) * 8 + row * 4 + ((group >> 1) & 1); }
int int8_word_of(int row, int group) { return (group >> 1) * 8 + row * 4 + (group & 1) * 2; }

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
  Int8Picks int8_picks;
  WordSpreader bf16_spread{bf16_word_of, 2}, int8_spread{int8_word_of, 1};

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
    for (int half = 0; half < 2; half++) {
      const uint8_t *values = block + POSITION_BYTES + (row >> 1) * 64 + half * 32;
      __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values)));
      __m512i index = int8_picks(block + (row >> 1) * 16 + half * 8);
      store_scaled(int8_spread(words, index, row & 1), scale, to + half * 32);
    }
  }
};

}  // namespace

extern "C" void expand_avx512(const Expansion *job) { expand_with(VectorBlockRow(), job); }
