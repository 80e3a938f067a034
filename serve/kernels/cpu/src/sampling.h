// The next token of each row of logits, by the rules of engine/sampler.py, without a sort.
//
// A row becomes weights exp((x - best) / temperature), in blocks that know their best and their sum. What top_k and
// top_p keep is found from the best down: first a bound below which nothing can be kept, which leaves some hundred
// tokens, then the last value that is kept, by its bits, ten at a time. Of equals the lowest ids are kept.
// All sums are in double, in one order, so a row's token does not depend on other rows, threads or instruction sets.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>

#include "kernels.h"
#include "numbers.h"
#include "threads.h"

namespace {

constexpr long LOGITS = 256, LOGIT_LANES = 16;  // of a block; of a vector

struct BestLogit {
  float value;
  long id;
};

template <class In>
inline void read_block(const In *from, long count, float *to) {
  if (count >= LOGITS)
    for (long i = 0; i < LOGITS; i++) to[i] = read_float(from + i);
  else
    for (long i = 0; i < LOGITS; i++) to[i] = i < count ? read_float(from + i) : -INFINITY;
}

inline float best_of_block(const float *block) {
  float lanes[LOGIT_LANES];
  for (long i = 0; i < LOGIT_LANES; i++) lanes[i] = block[i];
  for (long first = LOGIT_LANES; first < LOGITS; first += LOGIT_LANES)
    for (long i = 0; i < LOGIT_LANES; i++) lanes[i] = block[first + i] > lanes[i] ? block[first + i] : lanes[i];
  for (long width = LOGIT_LANES / 2; width; width /= 2)
    for (long i = 0; i < width; i++) lanes[i] = lanes[width + i] > lanes[i] ? lanes[width + i] : lanes[i];
  return lanes[0];
}

inline bool has_nan(const float *block) {
  int found[LOGIT_LANES] = {};
  for (long first = 0; first < LOGITS; first += LOGIT_LANES)
    for (long i = 0; i < LOGIT_LANES; i++) found[i] |= block[first + i] != block[first + i];
  int any = 0;
  for (long i = 0; i < LOGIT_LANES; i++) any |= found[i];
  return any;
}

// The best of a row, of equals the lowest id; NaN where there is one.
template <class In>
BestLogit best_of_row(const In *logits, long vocabulary) {
  BestLogit best = {-INFINITY, 0};
  long best_first = 0;
  alignas(64) float block[LOGITS];
  for (long first = 0; first < vocabulary; first += LOGITS) {
    read_block(logits + first, vocabulary - first, block);
    if (has_nan(block)) return {NAN, first};
    float value = best_of_block(block);
    if (value > best.value) best.value = value, best_first = first;
  }
  for (best.id = best_first; best.id < vocabulary - 1 && read_float(logits + best.id) != best.value;) best.id++;
  return best;
}

// e^x for x <= 0 to 2 units in the last place; 0 where a float has no full precision left.
inline float exp_of(float x) {
  float near = x < -87.0f ? -87.0f : x;
  float twos = near * 1.44269504f + 12582912.0f - 12582912.0f;  // rounded: the sum has no bits for a fraction
  float rest = near - twos * 0.693359375f + twos * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  float e = p * rest * rest + rest + 1.0f;
  return x < -87.0f ? 0.0f : e * float_of(static_cast<uint32_t>(static_cast<int32_t>(twos) + 127) << 23);
}

inline double sum_of_block(const float *weights) {
  double lanes[LOGIT_LANES] = {};
  for (long first = 0; first < LOGITS; first += LOGIT_LANES)
    for (long i = 0; i < LOGIT_LANES; i++) lanes[i] += static_cast<double>(weights[first + i]);
  for (long width = LOGIT_LANES / 2; width; width /= 2)
    for (long i = 0; i < width; i++) lanes[i] += lanes[width + i];
  return lanes[0];
}

// Writes the ids of those of LOGIT_LANES weights that are at least `least`, and not 0; returns how many.
inline long ids_from(const float *weights, float least, long first, int32_t *ids) {
#ifdef __AVX512F__
  __m512 found = _mm512_loadu_ps(weights);
  __mmask16 left = _mm512_cmp_ps_mask(found, _mm512_set1_ps(least), _CMP_GE_OQ) &
                   _mm512_cmp_ps_mask(found, _mm512_setzero_ps(), _CMP_GT_OQ);
  __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_mask_compressstoreu_epi32(ids, left, _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first))));
  return __builtin_popcount(left);
#else
  long count = 0;
  for (long i = 0; i < LOGIT_LANES; i++) {
    ids[count] = static_cast<int32_t>(first + i);
    count += weights[i] >= least && weights[i] > 0;
  }
  return count;
#endif
}

// One row as weights, and what is left of it.
struct Weights {
  long blocks;
  float *weights;  // [blocks * LOGITS]
  float *bests;    // [blocks]
  double *sums;    // [blocks]
  int32_t *ids;    // [blocks * LOGITS]; the first `count` are those that are left, ascending
  long count;
  double total;

  static size_t bytes(long blocks) { return blocks * (LOGITS * (sizeof(float) + sizeof(int32_t)) + 16); }

  explicit Weights(char *memory, long blocks_) : blocks(blocks_), count(0), total(0) {
    sums = reinterpret_cast<double *>(memory);
    weights = reinterpret_cast<float *>(sums + blocks);
    ids = reinterpret_cast<int32_t *>(weights + blocks * LOGITS);
    bests = reinterpret_cast<float *>(ids + blocks * LOGITS);
  }

  template <class In>
  void fill(const In *logits, long vocabulary, float best, float temperature, float min_p) {
    total = 0;
    for (long block = 0; block < blocks; block++) {
      float *to = weights + block * LOGITS;
      read_block(logits + block * LOGITS, vocabulary - block * LOGITS, to);
      for (long i = 0; i < LOGITS; i++) {
        float weight = exp_of((to[i] - best) / temperature);
        to[i] = weight >= min_p ? weight : 0.0f;
      }
      bests[block] = best_of_block(to);
      total += sums[block] = sum_of_block(to);
    }
  }

  // Leaves all of at least that weight, and not 0.
  void leave_from(float least) {
    count = 0;
    for (long block = 0; block < blocks; block++)
      if (bests[block] >= least && bests[block] > 0)
        for (long first = block * LOGITS; first < (block + 1) * LOGITS; first += LOGIT_LANES)
          count += ids_from(weights + first, least, first, ids + count);
  }

  double sum_of_left() const {
    double sum = 0;
    for (long i = 0; i < count; i++) sum += weights[ids[i]];
    return sum;
  }
};

// The least value that is kept, and how many of its equals.
struct Cut {
  float value;
  double equals;
};

constexpr uint32_t BINS = 1024;  // ten bits; the first ten of a weight, which is at most 1, are its upper twelve

// From the best down, values are kept while those before are fewer than `goal`, or by MASS weigh less.
template <bool MASS, class Value>
Cut find_cut(long count, Value value_of, double goal) {
  uint32_t known = 0, mask = 0;
  double before = 0;
  for (int shift = 20; shift >= 0; shift -= 10) {
    double bin_sums[BINS] = {};
    for (long i = 0; i < count; i++) {
      float value = value_of(i);
      uint32_t bits = bits_of(value);
      if ((bits & mask) == known) bin_sums[(bits >> shift) % BINS] += MASS ? value : 1;
    }
    int bin = BINS - 1;
    while (bin && (bin_sums[bin] == 0 || before + bin_sums[bin] < goal)) before += bin_sums[bin--];
    known |= static_cast<uint32_t>(bin) << shift;
    mask |= (BINS - 1) << shift;
  }
  float value = float_of(known);
  double equals = MASS ? ceil((goal - before) / value) : goal - before;
  return {value, equals > 1 ? equals : 1};
}

inline void leave(Weights *row, Cut cut) {
  long left = 0;
  for (long i = 0; i < row->count; i++) {
    float weight = row->weights[row->ids[i]];
    bool is_equal = weight == cut.value, taken = weight > cut.value || (is_equal && cut.equals >= 1);
    cut.equals -= is_equal;
    row->ids[left] = row->ids[i];
    left += taken;
  }
  row->count = left;
}

// The k-th best value, where there are as many.
inline Cut cut_at(Weights *row, double k) {
  const float *bests = row->bests;
  // At least k tokens are no worse than the k-th best block's best.
  row->leave_from(k < row->blocks ? find_cut<false>(row->blocks, [=](long i) { return bests[i]; }, k).value : 0);
  if (k >= row->count) return {0, 1};
  return find_cut<false>(row->count, [=](long i) { return row->weights[row->ids[i]]; }, k);
}

inline void leave_top_k(Weights *row, double k) { leave(row, cut_at(row, k)); }

inline void leave_top_p(Weights *row, double top_p, bool after_top_k) {
  double total = after_top_k ? row->sum_of_left() : row->total;
  // All that weigh less than this, were it the whole vocabulary, weigh less than what top_p leaves out.
  if (!after_top_k)
    row->leave_from(static_cast<float>((1 - top_p) * total / (row->blocks * LOGITS) * 0.999));
  leave(row, find_cut<true>(row->count, [=](long i) { return row->weights[row->ids[i]]; }, top_p * total));
}

// The first id by which the weights that are left exceed `u` of their sum.
inline long draw_of_left(const Weights &row, double u) {
  double target = u * row.sum_of_left(), sum = 0;
  for (long i = 0; i < row.count; i++)
    if ((sum += row.weights[row.ids[i]]) > target) return row.ids[i];
  return row.ids[row.count - 1];
}

inline long draw_of_all(const Weights &row, double u) {
  double target = u * row.total, before = 0;
  long last = 0;
  for (long block = 0; block < row.blocks; before += row.sums[block++]) {
    if (before + row.sums[block] <= target) continue;
    double sum = before;
    for (long id = block * LOGITS; id < (block + 1) * LOGITS; id++) {
      if (row.weights[id] == 0) continue;
      if ((sum += row.weights[id]) > target) return id;
      last = id;
    }
  }
  return last;
}

template <class In>
long draw_row(const In *logits, long vocabulary, const Draw &how, Weights *row) {
  BestLogit best = best_of_row(logits, vocabulary);
  if (!isfinite(best.value)) return -1;
  if (how.temperature == 0) return best.id;
  row->fill(logits, vocabulary, best.value, static_cast<float>(how.temperature), static_cast<float>(how.min_p));
  bool some = how.top_k > 0 && how.top_k < vocabulary;
  if (some) leave_top_k(row, how.top_k);
  if (how.top_p < 1) leave_top_p(row, how.top_p, some);
  return some || how.top_p < 1 ? draw_of_left(*row, how.u) : draw_of_all(*row, how.u);
}

// Calls work(i, row) for 0..count, with memory for one row in each thread; -1 where that cannot be had.
template <class Work>
int for_rows(long count, long vocabulary, int threads, Work work) {
  long blocks = (vocabulary + LOGITS - 1) / LOGITS;
  int failed = 0;
  share(count, threads, [&](long first, long end) {
    char *memory = static_cast<char *>(malloc(Weights::bytes(blocks)));
    if (!memory) return __atomic_store_n(&failed, -1, __ATOMIC_RELAXED);
    Weights row(memory, blocks);
    for (long i = first; i < end; i++) work(i, &row);
    free(memory);
  });
  return failed;
}

template <class In>
int draw_rows(const Draws *job) {
  return for_rows(job->count, job->vocabulary, job->threads, [=](long i, Weights *row) {
    const In *logits = static_cast<const In *>(job->logits) + static_cast<long>(job->draws[i].row) * job->vocabulary;
    job->ids[i] = draw_row(logits, job->vocabulary, job->draws[i], row);
  });
}

inline int draw_tokens(const Draws *job) { return job->is_float32 ? draw_rows<float>(job) : draw_rows<uint16_t>(job); }

}  // namespace
