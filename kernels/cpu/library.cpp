// Chooses an instruction set and proves it.

#include <cstring>

#include "checks.h"
#include "engine.h"

namespace youtu {

namespace {

// Best first.
const Isa* const kIsas[] = {
#if defined(__x86_64__)
    &isa_amx,
    &isa_avx512,
    &isa_avx2,
#elif defined(__aarch64__)
    &isa_neon,
#endif
    &isa_plain,
};

const Isa* find_isa(const char* name) {
  for (const Isa* isa : kIsas)
    if (*name ? std::strcmp(isa->name, name) == 0 : isa->supported()) return isa;
  return nullptr;
}

}  // namespace
}  // namespace youtu

using namespace youtu;

int32_t youtu_abi(void) { return YOUTU_KERNELS_ABI; }

int64_t youtu_workspace_bytes(int32_t threads) { return kSharedBytes + threads * kThreadScratch; }

int32_t youtu_init(int32_t threads, const char* isa, void* workspace, int64_t bytes) {
  if (threads < 1 || threads > 256 || bytes < youtu_workspace_bytes(threads)) return YOUTU_EINVAL;
  const Isa* chosen = find_isa(isa);
  if (!chosen || !chosen->supported()) return YOUTU_EUNSUPPORTED;
  engine.isa = chosen;
  engine.shared = static_cast<char*>(workspace);
  engine.scratch = engine.shared + kSharedBytes;
  pool_start(threads);
  return self_test() ? YOUTU_OK : YOUTU_EINTERNAL;
}

const char* youtu_isa(void) { return engine.isa ? engine.isa->name : ""; }

int32_t youtu_read_memory(const void* data, int64_t bytes, void*) {
  const int64_t chunks = bytes / kChunkBytes;
  volatile uint64_t sink = 0;
  parallel(static_cast<int>(chunks), [&](int chunk, int) {
    sink = engine.isa->read(static_cast<const uint8_t*>(data) + chunk * kChunkBytes, kChunkBytes);
  });
  return YOUTU_OK;
}
