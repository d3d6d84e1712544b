#include "isa.h"

namespace youtu {
namespace {

#include "simd/plain.h"
#include "leaf/tokenwise.h"
#include "leaf/int4.h"
#include "leaf/int8.h"
#include "leaf/dense.h"
#include "leaf/attend.h"

bool supported() { return true; }

}  // namespace

const Isa isa_plain = {
    "plain",
    supported,
    nullptr,
#include "leaf/table.h"
};

}  // namespace youtu
