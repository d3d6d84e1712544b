#include <immintrin.h>

#include "isa.h"

namespace youtu {
namespace {

#include "simd/avx512.h"
#include "leaf/tokenwise.h"
#include "leaf/int4.h"
#include "leaf/int8.h"
#include "leaf/dense.h"
#include "leaf/attend.h"

bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Isa isa_avx512 = {
    "avx512",
    supported,
    nullptr,
#include "leaf/table.h"
};

}  // namespace youtu
