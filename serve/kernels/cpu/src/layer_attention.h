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

// Calls work(places, first, end) for some tokens after others, in every thread for all of them.
template <class Work>
void for_places(const LayerAttention &job, Work work) {
  Place places[PLACES_AT_ONCE];
  for (long first = 0, end; first < job.token_count; first = end) {
    end = first + PLACES_AT_ONCE < job.token_count ? first + PLACES_AT_ONCE : job.token_count;
    place_tokens(job.chunks, job.chunk_count, first, end, places);
    work(places, first, end);
  }
}

inline void attend_layer(const LayerAttention *job) {
  const Cache cache = {job->keys, job->values, job->key_heads, job->head_dim, job->block_size};
  const Attending how = {job->heads, job->window, static_cast<float>(job->scale), static_cast<float>(job->cap)};
  const long row = job->heads * job->head_dim;
  team(job->threads, [&](const Member &me) {
    for_places(*job, [&](const Place *places, long first, long end) {
      for (long t = first; t < end; t++)
        if (t % me.threads == me.thread) keep_token(cache, *job, places[t - first], t);
    });
    me.wait();
    for_places(*job, [&](const Place *places, long first, long end) {
      AttentionShare(cache, how, places, end - first, {job->query + first * row, row},
                     {job->attended + first * row, row}, me)();
    });
  });
}

}  // namespace
