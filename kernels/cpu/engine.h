// What the entry points share: the chosen instruction set and the workspace.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace youtu {

constexpr int64_t kSharedBytes = 48 << 20;

struct Engine {
  const Isa* isa = nullptr;
  char* scratch = nullptr;  // kThreadScratch a thread
  char* shared = nullptr;   // kSharedBytes, for the operation that runs

  float* thread_scratch(int thread) const {
    return reinterpret_cast<float*>(scratch + thread * kThreadScratch);
  }
};

extern Engine engine;

// Hands out the shared workspace from the start, in 64-byte steps. An operation asks how much
// fits and cuts its work accordingly.
class Arena {
 public:
  template <class T>
  T* take(int64_t count) {
    char* p = engine.shared + used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(p);
  }
  int64_t left() const { return kSharedBytes - used_; }

 private:
  int64_t used_ = 0;
};

Acts take_acts(Arena&, int64_t rows, int k, int group);
constexpr int64_t acts_bytes(int k, int group) {
  return k + 4 * (k / kActBlock) + 4 * (k / group) + 3;
}
inline Acts acts_row(const Acts& a, int64_t row, int k, int group) {
  return {a.q + row * k, a.scale + row * (k / kActBlock), a.sum + row * (k / group)};
}

// Rows of a token-wise operation in chunks worth waking a thread for.
template <class F>
void parallel_rows(int rows, int64_t values_a_row, const F& f) {
  constexpr int64_t kGrain = 16384;
  const int grain = values_a_row >= kGrain ? 1 : static_cast<int>(kGrain / values_a_row) + 1;
  parallel((rows + grain - 1) / grain, [&](int chunk, int thread) {
    const int end = (chunk + 1) * grain < rows ? (chunk + 1) * grain : rows;
    for (int row = chunk * grain; row < end; row++) f(row, thread);
  });
}

inline int64_t cache_value_bytes(const youtu_step& step) {
  return step.cache_dtype == YOUTU_FLOAT32 ? 4 : 2;
}
inline int64_t layer_bytes(const youtu_step& step, int layer) {
  return static_cast<int64_t>(layer) * YOUTU_PAGE_SIZE * step.cache_width * cache_value_bytes(step);
}

// Work of about this many bytes of weights a chunk: large enough to amortise taking it, small
// enough that no core waits long for another.
constexpr int64_t kChunkBytes = 64 << 10;

// y [tokens, n] = x W^T + bias with all threads, as many tokens at a time as pays.
struct Int4Linear {
  const float* x;
  int64_t x_stride;
  const uint8_t* packed;
  const float* bias;
  float* y;
  int tokens, n, k, group;
};
void int4_linear(const Int4Linear&, Arena);

}  // namespace youtu
