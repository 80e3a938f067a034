// Attention of one token over the paged cache, in float32: softmax on the way, span by span of 64 positions. What is
// added in which order follows from positions alone, so that a token's result is the same in any batch and any chunk.
#pragma once
#include <math.h>

#include "cache.h"
#include "floats.h"
#include "rows.h"

namespace {

constexpr long SPAN_TOKENS = 64, MOST_DIMS = 256;

// Of HEADS query heads that share a key head.
template <int HEADS>
struct Attention {
  const Cache &cache;
  const int *table;
  long head, first, end;  // positions that are attended to
  float scale;
  float query[HEADS][MOST_DIMS], output[HEADS][MOST_DIMS];
  float largest[HEADS], weights[HEADS][SPAN_TOKENS], totals[HEADS][ROW_LANES];

  Attention(const Cache &paged, const int *blocks, long key_head, long from, long until, float factor)
      : cache(paged), table(blocks), head(key_head), first(from), end(until), scale(factor) {}

  void operator()(const uint16_t *queries, uint16_t *to) {
    const long dims = cache.head_dim;
    for (int h = 0; h < HEADS; h++) {
      largest[h] = -INFINITY;
      for (long lane = 0; lane < ROW_LANES; lane++) totals[h][lane] = 0;
      for (long dim = 0; dim < dims; dim++) query[h][dim] = from_bf16(queries[h * dims + dim]), output[h][dim] = 0;
    }
    for (long span = first / SPAN_TOKENS * SPAN_TOKENS; span < end; span += SPAN_TOKENS) attend(span);
    for (int h = 0; h < HEADS; h++) {
      float inverse = 1.f / sum_of_lanes(totals[h]);
      for (long dim = 0; dim < dims; dim++) to[h * dims + dim] = to_bf16(output[h][dim] * inverse);
    }
  }

  void attend(long span) {
    for (long at = span; at < span + SPAN_TOKENS; at += GROUP)
      if (at + GROUP > first && at < end) score(at, at - span);
    for (int h = 0; h < HEADS; h++) soften(span, weights[h], &largest[h], totals[h], output[h]);
    const long dims = cache.head_dim;
    long dim = 0;
    constexpr long AT_ONCE = VECTORS_AT_ONCE * ROW_LANES;
    for (; dim + AT_ONCE <= dims; dim += AT_ONCE) add_values<VECTORS_AT_ONCE>(span, dim);
    for (; dim < dims; dim += ROW_LANES) add_values<1>(span, dim);
  }

  // The scores of 16 tokens. Fetches what comes next: their values, and the keys of the group behind.
  void score(long at, long to) {
    const uint16_t *keys = cache.keys + cache.group(table, at, head);
    const uint16_t *values = cache.values + cache.group(table, at, head);
    const uint16_t *next = at + GROUP < end ? cache.keys + cache.group(table, at + GROUP, head) : keys;
    Floats even[HEADS], odd[HEADS];
    for (int h = 0; h < HEADS; h++) even[h] = odd[h] = spread(0);
    for (long dim = 0; dim < cache.head_dim; dim += 2) {
      _mm_prefetch(reinterpret_cast<const char *>(values + dim * GROUP), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char *>(next + dim * GROUP), _MM_HINT_T0);
      Pairs key = load_pairs(keys + dim * GROUP);
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; h++) {
        even[h] = multiply_add(key.low, spread(query[h][dim]), even[h]);
        odd[h] = multiply_add(key.high, spread(query[h][dim + 1]), odd[h]);
      }
    }
    for (int h = 0; h < HEADS; h++) store(weights[h] + to, times(add(even[h], odd[h]), spread(scale)));
  }

  // From scores to weights; what was added so far is scaled to the largest score by now.
  void soften(long span, float *weight, float *most, float *total, float *sum) const {
    for (long i = 0; i < first - span; i++) weight[i] = -INFINITY;
    for (long i = end - span; i < SPAN_TOKENS; i++) weight[i] = -INFINITY;
    float peak = largest_of_span(weight, *most), shrink = exponential(*most - peak);
    for (long lane = 0; lane < ROW_LANES; lane++) total[lane] *= shrink;
    for (long i = 0; i < SPAN_TOKENS; i += ROW_LANES)
      for (long lane = 0; lane < ROW_LANES; lane++) {
        float score = weight[i + lane], share = exponential(score - peak);
        weight[i + lane] = share = score == -INFINITY ? 0.f : share;
        total[lane] += share;
      }
    for (long dim = 0; dim < cache.head_dim; dim++) sum[dim] *= shrink;
    *most = peak;
  }

  static float largest_of_span(const float *score, float most) {
    float lanes[ROW_LANES];
    for (long lane = 0; lane < ROW_LANES; lane++) lanes[lane] = score[lane] > most ? score[lane] : most;
    for (long i = ROW_LANES; i < SPAN_TOKENS; i += ROW_LANES)
      for (long lane = 0; lane < ROW_LANES; lane++)
        lanes[lane] = score[i + lane] > lanes[lane] ? score[i + lane] : lanes[lane];
    for (long half = ROW_LANES / 2; half; half /= 2)
      for (long i = 0; i < half; i++) lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
    return lanes[0];
  }

  // Two tokens at a time. Beside the last one there may lie what another sequence has left: it is not looked at.
  template <int VECTORS>
  void add_values(long span, long dim) {
    Floats sum[HEADS][VECTORS];
    for (int h = 0; h < HEADS; h++)
      for (int v = 0; v < VECTORS; v++) sum[h][v] = load(output[h] + dim + v * ROW_LANES);
    long at = (span > first ? span : first) & ~1L, stop = span + SPAN_TOKENS < end ? span + SPAN_TOKENS : end;
    while (at < stop) {
      const uint16_t *values = cache.values + cache.group(table, at, head) + (at % GROUP * cache.head_dim + dim * 2);
      long group_end = (at / GROUP + 1) * GROUP, until = group_end < stop ? group_end : stop;
      for (; at + 1 < until; at += 2, values += 2 * cache.head_dim) add_pair<VECTORS, true>(values, at - span, sum);
      if (at < until) add_pair<VECTORS, false>(values, at - span, sum), at++;
    }
    for (int h = 0; h < HEADS; h++)
      for (int v = 0; v < VECTORS; v++) store(output[h] + dim + v * ROW_LANES, sum[h][v]);
  }

  template <int VECTORS, bool BOTH>
  void add_pair(const uint16_t *values, long i, Floats (*sum)[VECTORS]) const {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      Pairs value = load_pairs(values + v * ROW_LANES * 2);
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; h++) {
        sum[h][v] = multiply_add(value.low, spread(weights[h][i]), sum[h][v]);
        if (BOTH) sum[h][v] = multiply_add(value.high, spread(weights[h][i + 1]), sum[h][v]);
      }
    }
  }
};

template <int HEADS>
inline void attend_at_most(const Cache &cache, const int *table, long head, long first, long end, float scale,
                           const uint16_t *queries, long count, uint16_t *to) {
  if constexpr (HEADS > 1)
    if (count < HEADS)
      return attend_at_most<HEADS - 1>(cache, table, head, first, end, scale, queries, count, to);
  Attention<HEADS>(cache, table, head, first, end, scale)(queries, to);
  if (long done = HEADS * cache.head_dim; count > HEADS)
    attend_at_most<HEADS>(cache, table, head, first, end, scale, queries + done, count - HEADS, to + done);
}

// `count` query heads that share one key head -> [count, head_dim]; the last position attended to is end - 1.
inline void attend(const Cache &cache, const int *table, long head, long first, long end, float scale,
                   const uint16_t *queries, long count, uint16_t *to) {
  attend_at_most<HEADS_AT_ONCE>(cache, table, head, first, end, scale, queries, count, to);
}

}  // namespace
