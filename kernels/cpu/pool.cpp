#include "pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace youtu {
namespace {

// Long enough to bridge the glue between two operations of a layer, short enough not to burn a
// core that another process wants.
constexpr auto kSpin = std::chrono::microseconds(30);

struct Job {
  Chunk chunk;
  const void* data;
  int count;
};

struct Pool {
  // epoch << 32 | chunks not yet taken. A worker that comes late finds its epoch gone or no
  // chunks left, so nobody waits for it and `job` is stable while a taken chunk runs.
  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) std::atomic<uint32_t> epoch{0};  // futex word of the workers
  std::atomic<uint32_t> sleepers{0};
  alignas(64) std::atomic<uint32_t> done{0};  // futex word of the caller
  std::atomic<uint32_t> caller_sleeps{0};
  alignas(64) Job job{};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;

  void shut_down();
};

Pool& pool = *new Pool;  // never destroyed: workers may outlive static destructors

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr,
          0);
}

void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, count, nullptr,
          nullptr, 0);
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Ready>
bool spin(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; i++) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

void take_chunks(int thread) {
  uint64_t ticket = pool.ticket.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(ticket) != 0) {
    if (!pool.ticket.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    const Job job = pool.job;
    job.chunk(job.data, job.count - static_cast<int>(static_cast<uint32_t>(ticket)), thread);
    const auto count = static_cast<uint32_t>(job.count);
    if (pool.done.fetch_add(1, std::memory_order_seq_cst) + 1 == count &&
        pool.caller_sleeps.load(std::memory_order_seq_cst))
      futex_wake(pool.done, 1);
    ticket = pool.ticket.load(std::memory_order_acquire);
  }
}

void worker(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto changed = [&] { return pool.epoch.load(std::memory_order_acquire) != seen; };
    if (!spin(changed)) {
      pool.sleepers.fetch_add(1, std::memory_order_seq_cst);
      while (!changed()) futex_wait(pool.epoch, seen);
      pool.sleepers.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen = pool.epoch.load(std::memory_order_acquire);
    if (pool.stop.load(std::memory_order_acquire)) return;
    take_chunks(thread);
  }
}

void announce() {
  pool.epoch.fetch_add(1, std::memory_order_seq_cst);
  if (pool.sleepers.load(std::memory_order_seq_cst)) futex_wake(pool.epoch, 1 << 30);
}

void Pool::shut_down() {
  stop.store(true, std::memory_order_release);
  announce();
  for (auto& thread : workers) thread.join();
  workers.clear();
  stop.store(false, std::memory_order_release);
}

}  // namespace

void pool_start(int threads) {
  pool.shut_down();
  pool.epoch.store(0);
  for (int i = 1; i < threads; i++) pool.workers.emplace_back(worker, i);
}

int pool_threads() { return static_cast<int>(pool.workers.size()) + 1; }

void pool_run(int count, Chunk chunk, const void* data) {
  if (count <= 0) return;
  if (count == 1 || pool.workers.empty()) {
    for (int i = 0; i < count; i++) chunk(data, i, 0);
    return;
  }
  pool.job = {chunk, data, count};
  pool.done.store(0, std::memory_order_relaxed);
  const uint64_t epoch = (pool.ticket.load(std::memory_order_relaxed) >> 32) + 1;
  pool.ticket.store(epoch << 32 | static_cast<uint32_t>(count), std::memory_order_release);
  announce();
  take_chunks(0);
  const auto finished = [&] {
    return pool.done.load(std::memory_order_acquire) == static_cast<uint32_t>(count);
  };
  if (spin(finished)) return;
  pool.caller_sleeps.store(1, std::memory_order_seq_cst);
  for (uint32_t done;
       (done = pool.done.load(std::memory_order_seq_cst)) != static_cast<uint32_t>(count);)
    futex_wait(pool.done, done);
  pool.caller_sleeps.store(0, std::memory_order_relaxed);
}

}  // namespace youtu
