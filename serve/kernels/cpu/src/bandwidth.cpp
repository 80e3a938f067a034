// Reads memory and does nothing else that takes time. On some processors one thread reads a third faster by 64-byte
// loads than by 16-byte ones, so the AVX-512 form is taken where the processor has it.
#include "bandwidth.h"

#include <string.h>

#include "threads.h"

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // no vector is passed between functions compiled apart
#endif

namespace {

constexpr size_t LINE = 64, LINES = 4;  // independent sums, so that no load waits for an addition
typedef uint64_t Line __attribute__((vector_size(64)));

__attribute__((always_inline)) inline uint64_t read_lines(const uint8_t *from, size_t bytes, size_t ahead) {
  Line sums[LINES] = {};
  size_t at = 0;
  for (; at + LINES * LINE <= bytes; at += LINES * LINE)
    for (size_t i = 0; i < LINES; i++) {
      Line line;
      memcpy(&line, from + at + i * LINE, LINE);
      sums[i] ^= line;
      if (ahead) __builtin_prefetch(from + at + i * LINE + ahead);
    }
  for (; at + LINE <= bytes; at += LINE) {
    Line line;
    memcpy(&line, from + at, LINE);
    sums[0] ^= line;
  }
  Line all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  uint64_t sum = 0;
  for (size_t i = 0; i < LINE / sizeof sum; i++) sum ^= all[i];
  return sum;
}

uint64_t read_portably(const uint8_t *from, size_t bytes, size_t ahead) { return read_lines(from, bytes, ahead); }

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t read_avx512(const uint8_t *from, size_t bytes, size_t ahead) {
  return read_lines(from, bytes, ahead);
}
bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
#else
uint64_t read_avx512(const uint8_t *from, size_t bytes, size_t ahead) { return read_lines(from, bytes, ahead); }
bool has_avx512() { return false; }
#endif

}  // namespace

uint64_t read_memory(const uint8_t *from, size_t bytes, size_t ahead, int threads) {
  auto read = has_avx512() ? read_avx512 : read_portably;
  uint64_t all = 0;
  share(static_cast<long>(bytes / LINE), threads, [&](long first, long end) {
    uint64_t mine = read(from + first * LINE, static_cast<size_t>(end - first) * LINE, ahead);
    __atomic_fetch_xor(&all, mine, __ATOMIC_RELAXED);
  });
  return all;
}
