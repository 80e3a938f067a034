// Packs canonical 2:4 weights into the device layouts (layout.h), and back. Portable code.
#include <string.h>

#include "kernels.h"
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
  for (int unit = 0; unit < 64; unit++) {  // [cell][row]: 8 columns of one row
    long from_row = row + unit % BLOCK_ROWS, group = column / 4 + unit / BLOCK_ROWS * 2;
    block[unit] = static_cast<uint8_t>(source.nibble(from_row, group) | source.nibble(from_row, group + 1) << 4);
    for (int i = 0; i < 4; i++)
      block[POSITION_BYTES + unit * 4 + i] = source.value<uint8_t>(from_row, group + i / 2, i & 1);
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

// ---- and back

// Padding is dropped here.
struct Sink {
  const CanonicalTo *to;

  bool holds(long row, long group) const { return row < to->rows && group < to->columns / 4; }

  uint8_t *position_byte(long row, long group) const {
    return to->positions + row * blocks_over(to->columns, 8) + group / 2;
  }

  void code(long row, long group, int kept, int bits) const {  // into bytes that were zero
    if (holds(row, group)) *position_byte(row, group) |= static_cast<uint8_t>(bits << ((group & 1) * 4 + kept * 2));
  }

  template <class Value>
  void value(long row, long group, int kept, Value value) const {
    if (holds(row, group)) static_cast<Value *>(to->values)[row * (to->columns / 2) + group * 2 + kept] = value;
  }

  void scale(long row, long index, const uint8_t *from) const {
    if (row < to->rows && index < to->scales_per_row)
      memcpy(to->scales + row * to->scales_per_row + index, from, sizeof(float));
  }
};

void unpack_bf16_cell(const uint8_t *positions, const uint8_t *values, long row, long group, const Sink &sink) {
  uint64_t codes;
  uint16_t words[CELL_VALUES];
  memcpy(&codes, positions, sizeof codes);
  memcpy(words, values, sizeof words);
  for (int word = 0; word < CELL_VALUES; word++) {
    Slot slot = bf16_slot(word);
    long slot_row = row + slot.row, slot_group = group + slot.group;
    sink.code(slot_row, slot_group, slot.kept, static_cast<int>(codes >> slot.bit) & 3);
    sink.value(slot_row, slot_group, slot.kept, words[word]);
  }
}

void unpack_bf16_block(const uint8_t *block, long row, long column, const Sink &sink) {
  for (int cell = 0; cell < 8; cell++)  // [column half][pair]
    unpack_bf16_cell(block + cell * 8, block + POSITION_BYTES + cell * 64, row + (cell & 3) * 2,
                     column / 4 + (cell >> 2) * 8, sink);
}

void unpack_int8_block(const uint8_t *block, long row, long column, const Sink &sink) {
  for (int unit = 0; unit < 64; unit++) {
    long to_row = row + unit % BLOCK_ROWS, group = column / 4 + unit / BLOCK_ROWS * 2;
    for (int i = 0; i < 4; i++) {
      sink.code(to_row, group + i / 2, i & 1, block[unit] >> (i * 2) & 3);
      sink.value(to_row, group + i / 2, i & 1, block[POSITION_BYTES + unit * 4 + i]);
    }
  }
}

void unpack_block(int kind, const uint8_t *block, long row, long column, const Sink &sink) {
  if (kind == SPARSE_BF16) return unpack_bf16_block(block, row, column, sink);
  unpack_int8_block(block, row, column, sink);
  if (kind != SPARSE_INT8_BLOCK_SCALES) return;
  for (int r = 0; r < BLOCK_ROWS; r++)
    sink.scale(row + r, column / BLOCK_COLUMNS, block + BLOCK_BYTES_INT8 + r * sizeof(float));
}

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

extern "C" void unpack_layout(int kind, const uint8_t *from, const CanonicalTo *to, int threads) {
  long row_blocks = blocks_over(to->rows, BLOCK_ROWS), column_blocks = blocks_over(to->columns, BLOCK_COLUMNS);
  Sink sink{to};
  memset(to->positions, 0, static_cast<size_t>(to->rows * blocks_over(to->columns, 8)));
  share(row_blocks, threads, [&](long first, long end) {  // no two blocks share a byte: one has whole bytes of positions
    for (long i = first * column_blocks; i < end * column_blocks; i++)
      unpack_block(kind, from + static_cast<size_t>(i) * block_bytes(kind), i / column_blocks * BLOCK_ROWS,
                   i % column_blocks * BLOCK_COLUMNS, sink);
  });
  if (kind != SPARSE_INT8) return;
  const uint8_t *scales = from + static_cast<size_t>(row_blocks * column_blocks) * BLOCK_BYTES_INT8;
  for (long row = 0; row < to->rows; row++) sink.scale(row, 0, scales + row * sizeof(float));
}
