#include <arm_neon.h>
#include <sys/auxv.h>

#include "isa.h"

namespace youtu {
namespace {

#include "simd/neon.h"
#include "leaf/tokenwise.h"
#include "leaf/int4.h"
#include "leaf/int8.h"
#include "leaf/dense.h"
#include "leaf/attend.h"

bool supported() {
  constexpr unsigned long kDotProduct = 1 << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProduct;
}

}  // namespace

const Isa isa_neon = {
    "neon",
    supported,
    nullptr,
#include "leaf/table.h"
};

}  // namespace youtu
