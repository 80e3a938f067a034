// Packs canonical 2:4 weights into the device layouts (layout.h) and expands them again. Portable code.
#include <string.h>

#include "kernels.h"
#include "numbers.h"
#include "threads.h"

namespace {

// Where a value of a bfloat16 cell comes from: row of the pair, first or second kept, group of the 8, and its 2 bits.
struct Slot {
  int row, kept, group, bit;
};

constexpr Slot bf16_slot(int word) {
  int half_word = word & 1, lane = (word >> 1) & 7, b = word >> 4;
  return {(lane >> 1) & 1, lane & 1, b * 4 + half_word * 2 + (lane >> 2), b * 32 + half_word * 16 + lane * 2};
}

// The inverse: the word of a kept value.
constexpr int bf16_word(int row, int kept, int group) {
  return (group >> 2) * 16 + 2 * ((group & 1) * 4 + row * 2 + kept) + ((group >> 1) & 1);
}

struct Source {
  const Canonical *from;

  bool holds(long row, long group) const { return row < from->rows && group < from->columns / 4; }

  int nibble(long row, long group) const {  // of padding: positions 0 and 1
    if (!holds(row, group)) return 4;
    uint8_t byte = from->positions[row * blocks_over(from->columns, 8) + group / 2];
    return group & 1 ? byte >> 4 : byte & 15;
  }

  template <class Value>
  Value value(long row, long group, int kept) const {
    if (!holds(row, group)) return 0;
    return static_cast<const Value *>(from->values)[row * (from->columns / 2) + group * 2 + kept];
  }

  float scale(long row, long index) const {
    return row < from->rows && index < from->scales_per_row ? from->scales[row * from->scales_per_row + index] : 0;
  }
};

void pack_bf16_cell(const Source &source, long row, long group, uint8_t *positions, uint8_t *values) {
  uint64_t codes = 0;
  uint16_t words[CELL_VALUES];
  for (int word = 0; word < CELL_VALUES; word++) {
    Slot slot = bf16_slot(word);
    long slot_row = row + slot.row, slot_group = group + slot.group;
    uint64_t code = (source.nibble(slot_row, slot_group) >> (slot.kept * 2)) & 3;
    codes |= code << slot.bit;
    words[word] = source.value<uint16_t>(slot_row, slot_group, slot.kept);
  }
  memcpy(positions, &codes, sizeof codes);
  memcpy(values, words, sizeof words);
}

void pack_bf16_block(const Source &source, long row, long column, uint8_t *block) {
  for (int cell = 0; cell < 8; cell++)  // [column half][pair]
    pack_bf16_cell(source, row + (cell & 3) * 2, column / 4 + (cell >> 2) * 8, block + cell * 8,
                   block + POSITION_BYTES + cell * 64);
}

void pack_int8_block(const Source &source, long row, long column, uint8_t *block) {
  for (int pair = 0; pair < 4; pair++)
    for (int byte = 0; byte < 16; byte++) {
      long from_row = row + pair * 2 + (byte & 1), group = column / 4 + (byte >> 1) * 2;
      block[pair * 16 + byte] =
          static_cast<uint8_t>(source.nibble(from_row, group) | source.nibble(from_row, group + 1) << 4);
      uint8_t *values = block + POSITION_BYTES + pair * 64 + byte * 4;
      for (int i = 0; i < 4; i++) values[i] = source.value<uint8_t>(from_row, group + i / 2, i & 1);
    }
}

void pack_block(int kind, const Source &source, long row, long column, uint8_t *block) {
  if (kind == SPARSE_BF16) return pack_bf16_block(source, row, column, block);
  pack_int8_block(source, row, column, block);
  if (kind != SPARSE_INT8_BLOCK_SCALES) return;
  for (int r = 0; r < BLOCK_ROWS; r++) {
    float scale = source.scale(row + r, column / BLOCK_COLUMNS);
    memcpy(block + BLOCK_BYTES_INT8 + r * sizeof scale, &scale, sizeof scale);
  }
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
  uint64_t dense = static_cast<uint64_t>(first) << (nibble & 3) * 16 | static_cast<uint64_t>(second) << (nibble >> 2) * 16;
  memcpy(to, &dense, sizeof dense);
}

inline void convert(uint16_t bits, float, uint16_t *to) { *to = bits; }
inline void convert(uint16_t bits, float, float *to) { *to = from_bf16(bits); }
inline void convert(int8_t value, float scale, float *to) { *to = value * scale; }
inline void convert(int8_t value, float scale, uint16_t *to) { *to = to_bf16(value * scale); }

// Row `row` (0..7) of a block, 64 dense columns.
template <class Out>
void expand_bf16_row(const uint8_t *block, int row, Out *to) {
  int pair = row >> 1, r = row & 1;
  for (int half = 0; half < 2; half++) {
    int cell = half * 4 + pair;
    uint64_t codes = read_unaligned<uint64_t>(block + cell * 8);
    const uint8_t *values = block + POSITION_BYTES + cell * 64;
    for (int group = 0; group < 8; group++) {
      int word = bf16_word(r, 0, group), bit = bf16_slot(word).bit;
      Out first, second;  // the second kept value is one 32-bit lane further
      convert(read_unaligned<uint16_t>(values + word * 2), 1.f, &first);
      convert(read_unaligned<uint16_t>(values + word * 2 + 4), 1.f, &second);
      expand_group(first, second, static_cast<int>(codes >> bit) & 15, to + half * 32 + group * 4);
    }
  }
}

template <class Out>
void expand_int8_row(const uint8_t *block, int row, float scale, Out *to) {
  int pair = row >> 1, r = row & 1;
  for (int group = 0; group < 16; group++) {
    int unit = (group >> 1) * 2 + r, shift = (group & 1) * 4;  // 8 columns of one row
    int nibble = (block[pair * 16 + unit] >> shift) & 15;
    const uint8_t *values = block + POSITION_BYTES + pair * 64 + unit * 4 + (group & 1) * 2;
    Out first, second;
    convert(static_cast<int8_t>(values[0]), scale, &first);
    convert(static_cast<int8_t>(values[1]), scale, &second);
    expand_group(first, second, nibble, to + group * 4);
  }
}

struct Expander {
  const Expansion *job;
  long column_blocks = blocks_over(job->columns, BLOCK_COLUMNS);
  long row_blocks = blocks_over(job->rows, BLOCK_ROWS);

  const uint8_t *block(long row, long column_block) const {
    return job->weight + (row / BLOCK_ROWS * column_blocks + column_block) * static_cast<long>(block_bytes(job->kind));
  }

  float scale(long row, const uint8_t *block) const {
    if (job->kind == SPARSE_INT8_BLOCK_SCALES)
      return read_unaligned<float>(block + BLOCK_BYTES_INT8 + (row % BLOCK_ROWS) * 4);
    return read_unaligned<float>(job->weight + row_blocks * column_blocks * BLOCK_BYTES_INT8 + row * 4);
  }

  template <class Out>
  void block_row(long row, long column_block, Out *to) const {
    const uint8_t *from = this->block(row, column_block);
    int r = static_cast<int>(row % BLOCK_ROWS);
    if (job->kind == SPARSE_BF16) return expand_bf16_row(from, r, to);
    expand_int8_row(from, r, scale(row, from), to);
  }

  template <class Out>
  void row(long row, Out *to) const {
    long whole = job->columns / BLOCK_COLUMNS, rest = job->columns % BLOCK_COLUMNS;
    for (long block = 0; block < whole; block++) block_row(row, block, to + block * BLOCK_COLUMNS);
    if (!rest) return;
    Out padded[BLOCK_COLUMNS];
    block_row(row, whole, padded);
    memcpy(to + whole * BLOCK_COLUMNS, padded, static_cast<size_t>(rest) * sizeof(Out));
  }

  template <class Out>
  void rows(long first, long end) const {
    Out *to = static_cast<Out *>(job->to);
    for (long i = first; i < end; i++) row(job->first_row + i, to + i * job->columns);
  }
};

}  // namespace

extern "C" void pack_layout(int kind, const Canonical *from, uint8_t *to, int threads) {
  long row_blocks = blocks_over(from->rows, BLOCK_ROWS), column_blocks = blocks_over(from->columns, BLOCK_COLUMNS);
  Source source{from};
  share(row_blocks, threads, [&](long first, long end) {
    for (long i = first * column_blocks; i < end * column_blocks; i++)
      pack_block(kind, source, i / column_blocks * BLOCK_ROWS, i % column_blocks * BLOCK_COLUMNS,
                 to + static_cast<size_t>(i) * block_bytes(kind));
  });
  if (kind != SPARSE_INT8) return;
  uint8_t *scales = to + static_cast<size_t>(row_blocks * column_blocks) * BLOCK_BYTES_INT8;
  for (long row = 0; row < row_blocks * BLOCK_ROWS; row++) {
    float scale = source.scale(row, 0);
    memcpy(scales + row * 4, &scale, sizeof scale);
  }
}

extern "C" void expand_layout(const Expansion *job) {
  Expander expander{job};
  share(job->end_row - job->first_row, job->threads, [&](long first, long end) {
    if (job->is_float32)
      expander.rows<float>(first, end);
    else
      expander.rows<uint16_t>(first, end);
  });
}
