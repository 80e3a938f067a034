// A team of threads that walks through the phases of a step, one phase after the other.
#pragma once
#include <sched.h>
#include <stdint.h>
#include <time.h>
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

constexpr long MOST_THREADS = 256;
constexpr long TURN_NS = 100000;  // well below the turn that the system gives a thread

inline long now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000L + now.tv_nsec;
}

struct Share {
  long first, end;

  long size() const { return end - first; }
};

// The phases of a step, each of some units of work. Every thread has a share of them, of which it takes some at a time;
// when that is done it helps the others with theirs. A phase is over when its units are done, whoever did them. So a
// thread that another process keeps from its core holds up only what it has in hand, and finds what is under way when
// it is back.
class Phases {
  static constexpr int SPINS = 500, YIELDS = 50;
  struct alignas(64) Counter {
    uint64_t value = 0;
  };
  Counter taken[MOST_THREADS];  // of each share: the phase in the upper half, in the lower its first unit that is left
  alignas(64) long done = 0;    // units of the phase under way
  alignas(64) uint32_t current = FIRST;
  int sleeping = 0;

  bool is_over(uint32_t phase) const { return __atomic_load_n(&current, __ATOMIC_ACQUIRE) != phase; }

  void sleep(uint32_t phase) {
#if defined(__linux__)
    __atomic_add_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    while (!is_over(phase)) syscall(SYS_futex, &current, FUTEX_WAIT_PRIVATE, phase, nullptr, nullptr, 0);
    __atomic_sub_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
#else
    while (!is_over(phase)) sched_yield();
#endif
  }

  void wake() {
#if defined(__linux__)
    if (__atomic_load_n(&sleeping, __ATOMIC_SEQ_CST))
      syscall(SYS_futex, &current, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
  }

 public:
  static constexpr uint32_t FIRST = 1;

  // Takes half of what is left of a share, `fewest` units or more. False: nothing is left, or the phase is over; for
  // then the share has been taken to its end, or is of a later phase.
  bool take(uint32_t phase, long thread, Share share, long fewest, Share *mine) {
    uint64_t before = __atomic_load_n(&taken[thread].value, __ATOMIC_ACQUIRE), after;
    do {
      uint32_t of = static_cast<uint32_t>(before >> 32);
      if (of > phase) return false;
      mine->first = of == phase ? static_cast<uint32_t>(before) : share.first;
      long left = share.end - mine->first, half = (left + 1) / 2, some = half < fewest ? fewest : half;
      if (left <= 0) return false;
      mine->end = mine->first + (some < left ? some : left);
      after = uint64_t{phase} << 32 | static_cast<uint64_t>(mine->end);
    } while (!__atomic_compare_exchange_n(&taken[thread].value, &before, after, true, __ATOMIC_ACQ_REL,
                                          __ATOMIC_ACQUIRE));
    return true;
  }

  // Who does the last units of a phase begins the next one.
  void finish(uint32_t phase, long units, long count) {
    if (__atomic_add_fetch(&done, units, __ATOMIC_ACQ_REL) < count) return;
    __atomic_store_n(&done, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&current, phase + 1, __ATOMIC_SEQ_CST);
    wake();
  }

  // Who waits spins for some microseconds, which is how long the others mostly take, then gives its core to whoever
  // wants it, then sleeps: where somebody else is busy, a thread that spins takes the core that the late one needs.
  void wait(uint32_t phase) {
    for (int i = 0; i < SPINS; i++, pause_briefly())
      if (is_over(phase)) return;
    for (int i = 0; i < YIELDS; i++, sched_yield())
      if (is_over(phase)) return;
    sleep(phase);
  }
};

// One thread of a team. All walk through the same phases.
struct Member {
  long thread, threads;
  Phases *phases;
  uint32_t phase = Phases::FIRST;
  long turn_ns = now_ns();

  // A phase of `count` units: calls prepare(), then work(share) for what this thread gets, if it gets any. Only then:
  // what they read is nobody else's to change while this thread has units in hand.
  template <class Prepare, class Work>
  void share(long count, long fewest, Prepare prepare, Work work) {
    bool is_prepared = false;
    auto work_on = [&](Share share) {
      if (!is_prepared) prepare();
      is_prepared = true;
      work(share);
    };
    if (threads < 2) return work_on({0, count});
    pass_on();
    for (long i = 0; i < threads; i++) work_off((thread + i) % threads, count, fewest, work_on);
    phases->wait(phase++);
  }

  template <class Work>
  void share(long count, long fewest, Work work) {
    share(count, fewest, [] {}, work);
  }

  // The pool of threads waits for all of them when they leave, but spins for many milliseconds.
  void leave() {
    phases->finish(phase, 1, threads);
    phases->wait(phase);
  }

 private:
  // Between two phases, gives the core to whoever wants it, before the system does so in the middle of one.
  void pass_on() {
    long now = now_ns();
    if (now - turn_ns < TURN_NS) return;
    sched_yield();
    turn_ns = now_ns();
  }

  template <class Work>
  void work_off(long whose, long count, long fewest, Work work) {
    const Share share = {count * whose / threads, count * (whose + 1) / threads};
    long units = 0;
    for (Share mine; phases->take(phase, whose, share, fewest, &mine); units += mine.size()) work(mine);
    if (units) phases->finish(phase, units, count);
  }
};

// Calls work(member) in up to `threads` threads at once.
template <class Work>
inline void team(long threads, Work work) {
  Member alone{0, 1, nullptr};
  if (threads < 2 || !have_thread_pool()) return work(alone);
  Phases phases;
  struct Call {
    Work *work;
    Phases *phases;
  } call{&work, &phases};
  auto run = [](void *opaque) {
    Call *mine = static_cast<Call *>(opaque);
    Member me{omp_get_thread_num(), omp_get_num_threads(), mine->phases};
    (*mine->work)(me);
    me.leave();
  };
  GOMP_parallel(run, &call, static_cast<unsigned>(threads < MOST_THREADS ? threads : MOST_THREADS), 0);
}

}  // namespace
