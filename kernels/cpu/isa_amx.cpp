// AVX-512 for everything, and bf16 tiles for INT4 linears of many tokens.

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "isa.h"

namespace youtu {
namespace {

#include "simd/avx512.h"
#include "leaf/tokenwise.h"
#include "leaf/int4.h"
#include "leaf/int8.h"
#include "leaf/dense.h"
#include "leaf/attend.h"
#include "leaf/tiles.h"

bool supported() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vnni"))
    return false;
  unsigned a, b, c, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!(d & kBf16) || !(d & kTile)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux: arch_prctl, once a process
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Expanding a block to bf16 costs about what 12 tokens save.
const Tiles kTiles = {13, pack_tile_row, tile_linear};

}  // namespace

const Isa isa_amx = {
    "amx",
    supported,
    &kTiles,
#include "leaf/table.h"
};

}  // namespace youtu
