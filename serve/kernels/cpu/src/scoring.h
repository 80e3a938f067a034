// Log probabilities of tokens, and of the likeliest: those of the logits as they are.
#pragma once
#include "sampling.h"

namespace {

// The best of some ids by their logits, best first, of equals the lowest id first; `ids` come ascending.
template <class In>
struct Ranking {
  const In *logits;
  long most, count;
  int64_t *ids;

  void add(int64_t id) {
    float value = read_float(logits + id);
    if (count == most && !(value > read_float(logits + ids[count - 1]))) return;
    long place = count < most ? count++ : count - 1;
    for (; place && value > read_float(logits + ids[place - 1]); place--) ids[place] = ids[place - 1];
    ids[place] = id;
  }
};

template <class In>
void score_row(const In *logits, const Scores &job, long i, Weights *row) {
  float best = best_of_row(logits, job.vocabulary).value;
  float *tops = job.top_logprobs + i * job.top;
  int64_t *top_ids = job.top_ids + i * job.top;
  if (!isfinite(best)) {
    job.logprobs[i] = NAN;
    for (long rank = 0; rank < job.top; rank++) tops[rank] = NAN, top_ids[rank] = rank;
    return;
  }
  row->fill(logits, job.vocabulary, best, 1, 0);
  double all = best + log(row->total);
  job.logprobs[i] = static_cast<float>(read_float(logits + job.tokens[i]) - all);
  if (!job.top) return;
  row->leave_from(cut_at(row, static_cast<double>(job.top)).value);
  Ranking<In> ranking{logits, job.top, 0, top_ids};
  if (row->count >= job.top)
    for (long left = 0; left < row->count; left++) ranking.add(row->ids[left]);
  else  // some of the best are so unlikely that their weights are 0
    for (long id = 0; id < job.vocabulary; id++) ranking.add(id);
  for (long rank = 0; rank < job.top; rank++)
    tops[rank] = static_cast<float>(read_float(logits + top_ids[rank]) - all);
}

template <class In>
int score_rows(const Scores *job) {
  return for_rows(job->count, job->vocabulary, job->threads, [=](long i, Weights *row) {
    score_row(static_cast<const In *>(job->logits) + i * job->vocabulary, *job, i, row);
  });
}

inline int score_tokens(const Scores *job) {
  return job->is_float32 ? score_rows<float>(job) : score_rows<uint16_t>(job);
}

}  // namespace
