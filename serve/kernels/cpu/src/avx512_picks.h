// From 2-bit positions to permutation indices, AVX-512. What a pick selects is drawn in layout.h.
#pragma once
#include <immintrin.h>

#include "layout.h"
#include "numbers.h"

namespace {

#ifdef __AVX512VBMI__
// Turns the 2-bit positions of a cell into vpermw indices: group of the word * 4 + position.
struct Bf16Picks {
  __m512i bits, group_start;
  __m512i three = _mm512_set1_epi16(3);

  Bf16Picks() {
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
#endif

// Turns the positions of an int8 cell (8 rows x 8 columns, 8 bytes) into vpermw indices or their equal. Each 128-bit lane
// is two rows and has all 8 columns of x.
struct Int8Picks {
#ifdef __AVX512VBMI__
  __m512i bits, group_start;
  __m512i three = _mm512_set1_epi16(3);

  Int8Picks() {
    alignas(64) uint8_t bit[64];
    alignas(64) uint16_t start[32];
    for (int word = 0; word < 32; word++) {  // of a lane the first row keeps 4 words, the second 4
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

}  // namespace
