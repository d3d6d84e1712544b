// Each operation against double precision, on seeded random data, through the public entry points
// and the instruction set in use. A check returns the relative root mean square error.
#pragma once

#include <vector>

namespace youtu {

struct Span {
  int tokens, context;  // new tokens of a sequence, and its visible context with them
};

double check_int4(int n, int k, int group, int tokens);
double check_int8(int n, int k, int tokens);
double check_dense(int n, int k, int tokens);
double check_token_wise(int n, int tokens);  // the worst of norms, SiLU and GELU
double check_gqa(int heads, int kv_heads, int dim, int dtype, const std::vector<Span>& spans);
// group 0: kv_b unquantised, else 128
double check_mla(int group, int dtype, const std::vector<Span>& spans);

// What each must stay under: int8 activations by 32 (or bf16), int16 activations a row, float32.
constexpr double kInt4Bound = 8e-3, kInt8Bound = 2e-3, kFloatBound = 1e-6, kAttentionBound = 2e-5,
                 kMlaBound = 1.2e-2;

// A few small ones. False: this build does not compute right on this machine (a compiler's or an
// emulator's fault) and must not be used.
bool self_test();

}  // namespace youtu
