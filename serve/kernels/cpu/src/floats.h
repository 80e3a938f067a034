// Sixteen floats: one register of AVX-512, or two of AVX2.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace {

#ifdef __AVX512F__
constexpr int ROWS_AT_ONCE = 4, GROUPS_AT_ONCE = 2, VECTORS_AT_ONCE = 4;  // of attention: sums stay in registers

struct Floats {
  __m512 all;
};

inline Floats spread(float value) { return {_mm512_set1_ps(value)}; }
inline Floats load(const float *from) { return {_mm512_loadu_ps(from)}; }
inline void store(float *to, Floats x) { _mm512_storeu_ps(to, x.all); }
inline Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.all, b.all)}; }
inline Floats times(Floats a, Floats b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline Floats multiply_add(Floats a, Floats b, Floats sum) { return {_mm512_fmadd_ps(a.all, b.all, sum.all)}; }
inline Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.all, b.all)}; }  // b if either is NaN
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x.all); }

// Sixteen pairs of bfloat16: a bfloat16 is the upper half of a float32.
struct Pairs {
  Floats low, high;
};

inline Pairs load_pairs(const uint16_t *from) {
  __m512i both = _mm512_loadu_si512(from);
  __m512i high = _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))}, {_mm512_castsi512_ps(high)}};
}
#else
constexpr int ROWS_AT_ONCE = 2, GROUPS_AT_ONCE = 1, VECTORS_AT_ONCE = 2;

struct Floats {
  __m256 low, high;
};

inline Floats spread(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Floats load(const float *from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float *to, Floats x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats times(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats multiply_add(Floats a, Floats b, Floats sum) {
  return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}
inline Floats larger(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline float largest_of(Floats x) {
  __m256 both = _mm256_max_ps(x.low, x.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

struct Pairs {
  Floats low, high;
};

inline Pairs load_pairs(const uint16_t *from) {
  const __m256i *words = reinterpret_cast<const __m256i *>(from);
  __m256i first = _mm256_loadu_si256(words), second = _mm256_loadu_si256(words + 1);
  __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(first, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(second, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(first, upper)), _mm256_castsi256_ps(_mm256_and_si256(second, upper))}};
}
#endif

}  // namespace
