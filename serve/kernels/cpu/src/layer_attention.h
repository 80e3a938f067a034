// The attention of one layer, for models whose other parts are computed elsewhere.
#pragma once
#include "attention.h"

namespace {

constexpr long PLACES_AT_ONCE = 256;

inline void keep_token(const Cache &cache, const LayerAttention &job, const Place &place, long token) {
  for (long head = 0; head < cache.key_heads; head++) {
    long from = (token * cache.key_heads + head) * cache.head_dim;
    cache.write_key(place.table, place.position, head, job.key + from);
    cache.write_value(place.table, place.position, head, job.value + from);
  }
}

// What a token attends to is among those from `first` to `end`, or before them.
inline void attend_tokens(const LayerAttention &job, long first, long end, Member &me) {
  const Cache cache = {job.keys, job.values, job.key_heads, job.head_dim, job.block_size};
  const Attending how = {job.heads, job.window, static_cast<float>(job.scale), static_cast<float>(job.cap)};
  const long row = job.heads * job.head_dim;
  Place places[PLACES_AT_ONCE];
  place_tokens(job.chunks, job.chunk_count, first, end, places);
  me.share(end - first, 1, [&](Share mine) {
    for (long t = mine.first; t < mine.end; t++) keep_token(cache, job, places[t], first + t);
  });
  const AttentionOfTokens attention(cache, how, places, end - first, {job.query + first * row, row},
                                    {job.attended + first * row, row});
  me.share(attention.rows(), attention.fewest(), attention);
}

inline void attend_layer(const LayerAttention *job) {
  team(job->threads, [&](Member &me) {
    for (long first = 0, end; first < job->token_count; first = end) {
      end = first + PLACES_AT_ONCE < job->token_count ? first + PLACES_AT_ONCE : job->token_count;
      attend_tokens(*job, first, end, me);
    }
  });
}

}  // namespace
