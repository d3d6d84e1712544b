#include <immintrin.h>

#include "isa.h"

namespace youtu {
namespace {

#include "simd/avx2.h"
#include "leaf/tokenwise.h"
#include "leaf/int4.h"
#include "leaf/int8.h"
#include "leaf/dense.h"
#include "leaf/attend.h"

bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

const Isa isa_avx2 = {
    "avx2",
    supported,
    nullptr,
#include "leaf/table.h"
};

}  // namespace youtu
