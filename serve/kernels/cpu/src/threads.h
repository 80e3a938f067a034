// Threads without linking OpenMP. The weak symbols bind to the one libgomp that torch has loaded, so its thread pool
// and torch.set_num_threads govern us too; without torch, or inside a parallel region, the work is done serially.
#pragma once
extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
__attribute__((weak)) int omp_get_thread_num(void);
__attribute__((weak)) int omp_get_num_threads(void);
__attribute__((weak)) int omp_in_parallel(void);
}

namespace {

inline bool have_thread_pool() {
  return GOMP_parallel && omp_get_thread_num && omp_get_num_threads && omp_in_parallel && !omp_in_parallel();
}

// Calls work(first, end) for contiguous shares of 0..count, one for each thread.
template <class Work>
inline void share(long count, int threads, Work work) {
  if (threads < 2 || count < 2 || !have_thread_pool()) return work(0L, count);
  struct Call {
    Work *work;
    long count;
  } call{&work, count};
  auto run = [](void *opaque) {
    Call *mine = static_cast<Call *>(opaque);
    long thread = omp_get_thread_num(), team = omp_get_num_threads();
    (*mine->work)(mine->count * thread / team, mine->count * (thread + 1) / team);
  };
  GOMP_parallel(run, &call, static_cast<unsigned>(threads), 0);
}

}  // namespace
