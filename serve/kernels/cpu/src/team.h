// A team of threads that walks through the phases of a step together, with a barrier between two phases.
#pragma once
#include <sched.h>
#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "threads.h"

namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Who waits spins for some microseconds, which is how long the others mostly take, then gives its core to whoever
// wants it, then sleeps: where somebody else is busy, a thread that spins takes the core that the late one needs.
class Barrier {
  static constexpr int SPINS = 500, YIELDS = 50;
  alignas(64) int arrived = 0;
  alignas(64) int round = 0;
  int sleeping = 0;

  bool is_over(int before) const { return __atomic_load_n(&round, __ATOMIC_ACQUIRE) != before; }

  void sleep(int before) {
#if defined(__linux__)
    __atomic_add_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    while (!is_over(before)) syscall(SYS_futex, &round, FUTEX_WAIT_PRIVATE, before, nullptr, nullptr, 0);
    __atomic_sub_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
#else
    while (!is_over(before)) sched_yield();
#endif
  }

  void wake() {
#if defined(__linux__)
    if (__atomic_load_n(&sleeping, __ATOMIC_SEQ_CST))
      syscall(SYS_futex, &round, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
  }

 public:
  void wait(long threads) {
    int before = __atomic_load_n(&round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&round, before + 1, __ATOMIC_SEQ_CST);
      return wake();
    }
    for (int i = 0; i < SPINS; i++, pause_briefly())
      if (is_over(before)) return;
    for (int i = 0; i < YIELDS; i++, sched_yield())
      if (is_over(before)) return;
    sleep(before);
  }
};

struct Share {
  long first, end;
};

// One thread of a team.
struct Member {
  long thread, threads;
  Barrier *barrier;

  void wait() const {
    if (threads > 1) barrier->wait(threads);
  }

  Share share(long count) const { return {count * thread / threads, count * (thread + 1) / threads}; }
};

// Calls work(member) in up to `threads` threads at once.
template <class Work>
inline void team(long threads, Work work) {
  Barrier barrier;
  if (threads < 2 || !have_thread_pool()) return work(Member{0, 1, &barrier});
  struct Call {
    Work *work;
    Barrier *barrier;
  } call{&work, &barrier};
  auto run = [](void *opaque) {
    Call *mine = static_cast<Call *>(opaque);
    (*mine->work)(Member{omp_get_thread_num(), omp_get_num_threads(), mine->barrier});
  };
  GOMP_parallel(run, &call, static_cast<unsigned>(threads), 0);
}

}  // namespace
