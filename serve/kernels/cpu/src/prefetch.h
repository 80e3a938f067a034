// Prefetching of weights.
#pragma once
#include <immintrin.h>

#include "layout.h"

namespace {

// Weights are read once, in order. Fetching far ahead into L2 and near ahead into L1 reads them at the speed of the
// memory. Where the loads of one token follow each other closely, AMD does better with one distance, and its family 19h
// left alone. All measured.
struct Prefetcher {
  long far_ahead = __builtin_cpu_is("amd") ? 0 : 8192;
  long near_ahead = __builtin_cpu_is("amdfam19h") ? 0 : __builtin_cpu_is("amd") ? 8192 : 2048;

  template <bool LOADS_ARE_CLOSE>
  void prefetch(const uint8_t *at) const {
    const char *line = reinterpret_cast<const char *>(at);
    if (!LOADS_ARE_CLOSE || far_ahead) _mm_prefetch(line + (LOADS_ARE_CLOSE ? far_ahead : 16384), _MM_HINT_T1);
    _mm_prefetch(line + (LOADS_ARE_CLOSE ? near_ahead : 4096), _MM_HINT_T0);
  }
};

// Eight rows of a dense weight are eight streams: far ahead is the same place of the next eight, near ahead four lines.
inline void prefetch_ahead(const uint16_t *values, long stride) {
  _mm_prefetch(reinterpret_cast<const char *>(values + BLOCK_ROWS * stride), _MM_HINT_T1);
  _mm_prefetch(reinterpret_cast<const char *>(values + 128), _MM_HINT_T0);
}

}  // namespace
