// The paged cache of keys and values: blocks of tokens, a multiple of 16 each, laid out as attention reads them.
//
//   keys    [block][key head][16 tokens]  [dims / 2][16][2]    a vector holds two dimensions of 16 tokens
//   values  [block][key head][2 tokens]   [dims][2]            a vector holds 16 dimensions of two tokens
//
// So scores come out token by token and outputs dimension by dimension; nothing is added across a vector.
#pragma once
#include "model.h"

namespace {

constexpr long GROUP = 16;  // tokens

// Where a token stands in its sequence, and where that lies in the cache.
struct Place {
  long position;
  const int *table;
};

// Those of the tokens of all chunks from `first` to `end`.
inline void place_tokens(const Chunk *chunks, long count, long first, long end, Place *to) {
  long at = 0;
  for (long i = 0; i < count; at += chunks[i++].tokens) {
    const Chunk &chunk = chunks[i];
    long from = first > at ? first : at, until = end < at + chunk.tokens ? end : at + chunk.tokens;
    for (long t = from; t < until; t++) to[t - first] = {chunk.start + t - at, chunk.table};
  }
}

struct Cache {
  uint16_t *keys, *values;
  long key_heads, head_dim, block_size;

  // Where the group of 16 tokens begins that a position is in; 16 * head_dim values.
  long group(const int *table, long position, long head) const {
    long offset = position % block_size / GROUP * GROUP;
    return ((table[position / block_size] * key_heads + head) * block_size + offset) * head_dim;
  }

  void write_key(const int *table, long position, long head, const uint16_t *key) const {
    uint16_t *to = keys + group(table, position, head) + position % GROUP * 2;
    for (long dim = 0; dim < head_dim; dim += 2) {
      to[dim * GROUP] = key[dim];
      to[dim * GROUP + 1] = key[dim + 1];
    }
  }

  void write_value(const int *table, long position, long head, const uint16_t *value) const {
    uint16_t *to = values + group(table, position, head) + position % GROUP / 2 * 2 * head_dim + (position & 1);
    for (long dim = 0; dim < head_dim; dim++) to[dim * 2] = value[dim];
  }
};

}  // namespace
