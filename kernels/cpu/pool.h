// The thread pool: the calling thread and n - 1 workers share out numbered chunks.
#pragma once

#include <cstdint>

namespace youtu {

using Chunk = void (*)(const void* job, int chunk, int thread);

void pool_start(int threads);
int pool_threads();

// Runs chunk(job, 0 .. count - 1, thread). Chunks are taken from one atomic counter, so a core
// that is busy with something else simply takes fewer.
void pool_run(int count, Chunk chunk, const void* job);

// The same for a callable f(chunk, thread).
template <class F>
void parallel(int count, const F& f) {
  pool_run(
      count,
      [](const void* job, int chunk, int thread) { (*static_cast<const F*>(job))(chunk, thread); },
      &f);
}

}  // namespace youtu
