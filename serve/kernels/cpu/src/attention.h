// Attention over the paged cache, in float32: softmax on the way, span by span of 64 positions. What is added in which
// order follows from positions alone, so that a token's result is the same in any batch and any chunk.
#pragma once
#include <math.h>

#include "cache.h"
#include "floats.h"
#include "rows.h"
#include "team.h"

namespace {

constexpr long SPAN_TOKENS = 64, MOST_DIMS = 256;

// How the tokens of a layer attend.
struct Attending {
  long heads, window;  // tokens, itself included; 0: all
  float scale, cap;    // of scores: they stay between this and its negative; 0: they have none
};

// A query head of a token, and the positions that it attends to.
struct Row {
  const uint16_t *query;
  uint16_t *to;
  long first, end;
};

// Of ROWS rows, which read the same keys and values: query heads that share a key head, of one token or of several
// that follow each other. What a row does not see weighs nothing for it, which changes nothing in its sums.
template <int ROWS>
struct Attention {
  const Cache &cache;
  const int *table;
  const Row *rows;
  long head, first, end;  // positions that any row attends to
  float scale, cap;
  float query[ROWS][MOST_DIMS], output[ROWS][MOST_DIMS];
  float largest[ROWS], weights[ROWS][SPAN_TOKENS], totals[ROWS][ROW_LANES];

  Attention(const Cache &paged, const int *blocks, long key_head, const Row *of, const Attending &how)
      : cache(paged), table(blocks), rows(of), head(key_head), first(of[0].first), end(of[ROWS - 1].end),
        scale(how.scale), cap(how.cap) {}

  void operator()() {
    const long dims = cache.head_dim;
    for (int r = 0; r < ROWS; r++) {
      largest[r] = -INFINITY;
      for (long lane = 0; lane < ROW_LANES; lane++) totals[r][lane] = 0;
      for (long dim = 0; dim < dims; dim++) query[r][dim] = from_bf16(rows[r].query[dim]), output[r][dim] = 0;
    }
    for (long span = first / SPAN_TOKENS * SPAN_TOKENS; span < end; span += SPAN_TOKENS) attend(span);
    for (int r = 0; r < ROWS; r++) {
      float inverse = 1.f / sum_of_lanes(totals[r]);
      for (long dim = 0; dim < dims; dim++) rows[r].to[dim] = to_bf16(output[r][dim] * inverse);
    }
  }

  void attend(long span) {
    score_span(span);
    for (int r = 0; r < ROWS; r++) soften(span, rows[r], weights[r], &largest[r], totals[r], output[r]);
    const long span_end = span + SPAN_TOKENS < end ? span + SPAN_TOKENS : end;
    const long last_first = rows[ROWS - 1].first > span ? (rows[ROWS - 1].first + 1) & ~1L : span;
    const long from = last_first < span_end ? last_first : span_end;
    const long first_end = rows[0].end < span_end ? rows[0].end : span_end, until = first_end > from ? first_end : from;
    for (int r = 0; r < ROWS; r++) add_edge(r, span, span, from);
    add_common(span, from, until);
    for (int r = 0; r < ROWS; r++) add_edge(r, span, until, span_end);
  }

  void score_span(long span) {
    long at = span > first ? span : first / GROUP * GROUP, stop = span + SPAN_TOKENS < end ? span + SPAN_TOKENS : end;
    for (; at + (GROUPS_AT_ONCE - 1) * GROUP < stop; at += GROUPS_AT_ONCE * GROUP) score<GROUPS_AT_ONCE>(at, at - span);
    for (; at < stop; at += GROUP) score<1>(at, at - span);
  }

  // The scores of groups of 16 tokens. Fetches what comes next: their values, and the keys of the next span.
  template <int GROUPS>
  void score(long at, long to) {
    const uint16_t *keys[GROUPS], *values[GROUPS], *next[GROUPS];
    for (int g = 0; g < GROUPS; g++) {
      long token = at + g * GROUP, ahead = token + SPAN_TOKENS < end ? token + SPAN_TOKENS : token;
      keys[g] = cache.keys + cache.group(table, token, head);
      values[g] = cache.values + cache.group(table, token, head);
      next[g] = cache.keys + cache.group(table, ahead, head);
    }
    Floats even[GROUPS][ROWS], odd[GROUPS][ROWS];
    for (int g = 0; g < GROUPS; g++)
      for (int r = 0; r < ROWS; r++) even[g][r] = odd[g][r] = spread(0);
    for (long dim = 0; dim < cache.head_dim; dim += 2) {
      Pairs key[GROUPS];
      for (int g = 0; g < GROUPS; g++) {
        _mm_prefetch(reinterpret_cast<const char *>(values[g] + dim * GROUP), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char *>(next[g] + dim * GROUP), _MM_HINT_T0);
        key[g] = load_pairs(keys[g] + dim * GROUP);
      }
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++) {
        Floats first_dim = spread(query[r][dim]), second_dim = spread(query[r][dim + 1]);
        for (int g = 0; g < GROUPS; g++) {
          even[g][r] = multiply_add(key[g].low, first_dim, even[g][r]);
          odd[g][r] = multiply_add(key[g].high, second_dim, odd[g][r]);
        }
      }
    }
    for (int g = 0; g < GROUPS; g++)
      for (int r = 0; r < ROWS; r++)
        store(weights[r] + to + g * GROUP, times(add(even[g][r], odd[g][r]), spread(scale)));
  }

  // From scores to weights; what was added so far is scaled to the largest score by now.
  void soften(long span, const Row &row, float *weight, float *most, float *total, float *sum) const {
    if (row.end <= span || row.first >= span + SPAN_TOKENS) return clear(weight);
    if (cap > 0) hold(weight);
    for (long i = 0; i < row.first - span; i++) weight[i] = -INFINITY;
    for (long i = row.end - span; i < SPAN_TOKENS; i++) weight[i] = -INFINITY;
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

  static void clear(float *weight) {
    for (long i = 0; i < SPAN_TOKENS; i++) weight[i] = 0;
  }

  // cap * tanh(score / cap)
  void hold(float *score) const {
    for (long i = 0; i < SPAN_TOKENS; i++) score[i] = cap - 2.f * cap / (exponential(score[i] * (2.f / cap)) + 1.f);
  }

  static float largest_of_span(const float *score, float most) {
    Floats lanes = spread(most);
    for (long i = 0; i < SPAN_TOKENS; i += ROW_LANES) lanes = larger(load(score + i), lanes);
    return largest_of(lanes);
  }

  // The values of the few tokens that not all rows see, for a row that does: nothing of the others gets into its sum.
  void add_edge(int r, long span, long from, long until) {
    long at = from > rows[r].first ? from : rows[r].first, stop = until < rows[r].end ? until : rows[r].end;
    for (; at < stop; at++) {
      const uint16_t *values = cache.values + cache.group(table, at, head) + at % GROUP / 2 * 2 * cache.head_dim;
      for (long dim = 0; dim < cache.head_dim; dim += ROW_LANES) {
        Pairs value = load_pairs(values + dim * 2);
        Floats weight = spread(weights[r][at - span]), sum = load(output[r] + dim);
        store(output[r] + dim, multiply_add(at % 2 ? value.high : value.low, weight, sum));
      }
    }
  }

  // Those of the tokens that all rows see.
  void add_common(long span, long from, long until) {
    long dim = 0;
    constexpr long AT_ONCE = VECTORS_AT_ONCE * ROW_LANES;
    for (; dim + AT_ONCE <= cache.head_dim; dim += AT_ONCE) add_values<VECTORS_AT_ONCE>(span, from, until, dim);
    for (; dim < cache.head_dim; dim += ROW_LANES) add_values<1>(span, from, until, dim);
  }

  // Two tokens at a time. Beside the last one there may lie what another sequence has left: it is not looked at.
  template <int VECTORS>
  void add_values(long span, long at, long stop, long dim) {
    Floats sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) sum[r][v] = load(output[r] + dim + v * ROW_LANES);
    while (at < stop) {
      const uint16_t *values = cache.values + cache.group(table, at, head) + (at % GROUP * cache.head_dim + dim * 2);
      long group_end = (at / GROUP + 1) * GROUP, until = group_end < stop ? group_end : stop;
      for (; at + 1 < until; at += 2, values += 2 * cache.head_dim) add_pair<VECTORS, true>(values, at - span, sum);
      if (at < until) add_pair<VECTORS, false>(values, at - span, sum), at++;
    }
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) store(output[r] + dim + v * ROW_LANES, sum[r][v]);
  }

  template <int VECTORS, bool BOTH>
  void add_pair(const uint16_t *values, long i, Floats (*sum)[VECTORS]) const {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      Pairs value = load_pairs(values + v * ROW_LANES * 2);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++) {
        sum[r][v] = multiply_add(value.low, spread(weights[r][i]), sum[r][v]);
        if (BOTH) sum[r][v] = multiply_add(value.high, spread(weights[r][i + 1]), sum[r][v]);
      }
    }
  }
};

template <int ROWS>
inline void attend_at_most(const Cache &cache, const int *table, long head, const Row *rows, long count,
                           const Attending &how) {
  if constexpr (ROWS > 1)
    if (count < ROWS) return attend_at_most<ROWS - 1>(cache, table, head, rows, count, how);
  Attention<ROWS>(cache, table, head, rows, how)();
}

// Rows of all heads of a token.
template <class T>
struct HeadRows {
  T *rows;
  long stride;
};

// The attention of tokens, whose rows are numbered: of one sequence after the other, and there of one key head after
// the other. So rows that follow each other mostly read the same keys and values; they do so together, as many as the
// registers hold.
class AttentionOfTokens {
  const Cache &cache;
  const Attending &how;
  const Place *places;
  const long count, sharing;  // sharing: query heads that share a key head
  const HeadRows<const uint16_t> queries;
  const HeadRows<uint16_t> to;

 public:
  AttentionOfTokens(const Cache &paged, const Attending &rule, const Place *at, long tokens,
                    HeadRows<const uint16_t> from, HeadRows<uint16_t> into)
      : cache(paged), how(rule), places(at), count(tokens), sharing(rule.heads / paged.key_heads), queries(from),
        to(into) {}

  long rows() const { return count * how.heads; }
  long fewest() const { return sharing; }  // that should be computed together

  void operator()(Share mine) const {
    long number = 0;
    for (long t = 0, stop; t < count; t = stop) {
      for (stop = t + 1; stop < count && places[stop].table == places[t].table;) stop++;
      for (long head = 0; head < cache.key_heads; head++, number += (stop - t) * sharing)
        attend_sequence(t, head, {mine.first - number, mine.end - number}, (stop - t) * sharing);
    }
  }

 private:
  // Those of `all` rows of a key head that are in a share.
  void attend_sequence(long t, long head, Share mine, long all) const {
    const long last = mine.end < all ? mine.end : all;
    Row rows[ROWS_AT_ONCE];
    for (long i = mine.first > 0 ? mine.first : 0; i < last;) {
      long waiting = 0;
      for (; i < last && waiting < ROWS_AT_ONCE; i++)
        rows[waiting++] = row(t + i / sharing, head * sharing + i % sharing);
      attend_at_most<ROWS_AT_ONCE>(cache, places[t].table, head, rows, waiting, how);
    }
  }

  Row row(long t, long head) const {
    long end = places[t].position + 1, first = how.window && end > how.window ? end - how.window : 0;
    return {queries.rows + t * queries.stride + head * cache.head_dim,
            to.rows + t * to.stride + head * cache.head_dim, first, end};
  }
};

}  // namespace
