// Expands device layouts to dense, in portable code.
#include "expand.h"

namespace {

// Where a kept value of a bfloat16 cell lies: its word, and the bit of the group's position nibble (layout.h).
constexpr int word_of(int row, int group) { return (group >> 2) * 16 + (group & 1) * 8 + row * 4 + ((group >> 1) & 1); }
constexpr int bit_of(int row, int group) {
  return (group >> 2) * 32 + ((group >> 1) & 1) * 16 + (group & 1) * 8 + row * 4;
}

// Four dense values of a group: each kept value moved to its position.
template <class Value>
inline void expand_group(Value first, Value second, int nibble, Value *to) {
  Value dense[4] = {0, 0, 0, 0};
  dense[nibble & 3] = first;
  dense[nibble >> 2] = second;
  memcpy(to, dense, sizeof dense);
}

template <>
inline void expand_group(uint16_t first, uint16_t second, int nibble, uint16_t *to) {
  uint64_t low = static_cast<uint64_t>(first) << (nibble & 3) * 16;
  uint64_t dense = low | static_cast<uint64_t>(second) << (nibble >> 2) * 16;
  memcpy(to, &dense, sizeof dense);
}

inline void convert(uint16_t bits, float, uint16_t *to) { *to = bits; }
inline void convert(uint16_t bits, float, float *to) { *to = from_bf16(bits); }
inline void convert(int8_t value, float scale, float *to) { *to = value * scale; }
inline void convert(int8_t value, float scale, uint16_t *to) { *to = to_bf16(value * scale); }

template <class Out>
void expand_bf16_row(const uint8_t *block, int row, Out *to) {
  int pair = row >> 1, r = row & 1;
  for (int half = 0; half < 2; half++) {
    int cell = half * 4 + pair;
    uint64_t codes = read_unaligned<uint64_t>(block + cell * 8);
    const uint8_t *values = block + POSITION_BYTES + cell * 64;
    for (int group = 0; group < 8; group++) {
      int word = word_of(r, group);
      Out first, second;  // the second kept value is one 32-bit lane further
      convert(read_unaligned<uint16_t>(values + word * 2), 1.f, &first);
      convert(read_unaligned<uint16_t>(values + word * 2 + 4), 1.f, &second);
      expand_group(first, second, static_cast<int>(codes >> bit_of(r, group)) & 15, to + half * 32 + group * 4);
    }
  }
}

template <class Out>
void expand_int8_row(const uint8_t *block, int row, float scale, Out *to) {
  for (int group = 0; group < 16; group++) {
    int unit = (group >> 1) * BLOCK_ROWS + row, shift = (group & 1) * 4;  // 8 columns of one row
    int nibble = (block[unit] >> shift) & 15;
    const uint8_t *values = block + POSITION_BYTES + unit * 4 + (group & 1) * 2;
    Out first, second;
    convert(static_cast<int8_t>(values[0]), scale, &first);
    convert(static_cast<int8_t>(values[1]), scale, &second);
    expand_group(first, second, nibble, to + group * 4);
  }
}

struct PortableBlockRow {
  template <class Out>
  void bf16(const uint8_t *block, int row, Out *to) const {
    expand_bf16_row(block, row, to);
  }

  template <class Out>
  void int8(const uint8_t *block, int row, float scale, Out *to) const {
    expand_int8_row(block, row, scale, to);
  }
};

}  // namespace

extern "C" void expand_portably(const Expansion *job) { expand_with(PortableBlockRow(), job); }
