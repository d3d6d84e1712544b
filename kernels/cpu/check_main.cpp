// Every check over the table of shapes, for machines without Python: youtu_check [ISA ...]

#include <cstdio>
#include <cstdlib>

#include "checks.h"
#include "engine.h"

using namespace youtu;

namespace {

int failures = 0;

void report(double error, double bound, const char* what, int a, int b, int c, int d) {
  const bool good = error < bound;  // false for NaN
  failures += !good;
  std::printf("%-6s %-12s %5d %5d %4d %4d  %.1e%s\n", youtu_isa(), what, a, b, c, d, error,
              good ? "" : "  FAILED");
}

void check_all() {
  const int linears[][2] = {{1152, 896},  {896, 4864},  {2112, 2048}, {576, 2048},
                            {1536, 8960}, {2048, 6144}, {4096, 512},  {1000, 128}};
  for (const auto& [n, k] : linears)
    for (int tokens : {1, 2, 5, 13, 67})
      report(check_int4(n, k, 128, tokens), kInt4Bound, "int4", n, k, 128, tokens);
  for (int group : {32, 64})
    report(check_int4(72, 384, group, 40), kInt4Bound, "int4", 72, 384, group, 40);
  report(check_int4(512, 512, 128, 600), kInt4Bound, "int4", 512, 512, 128, 600);
  for (int tokens : {1, 4, 7})
    report(check_int8(203, 2048, tokens), kInt8Bound, "int8", 203, 2048, 0, tokens);
  for (int n : {1536, 37}) report(check_token_wise(n, 3), kFloatBound, "token-wise", n, 0, 0, 3);
  const int heads[][3] = {{14, 2, 64}, {12, 2, 128}, {16, 16, 128}, {32, 4, 64}, {32, 32, 80}};
  const std::vector<Span> spans[] = {
      {{1, 1}}, {{5, 5}, {1, 256}, {1, 257}, {3, 511}}, {{70, 70}, {1, 900}}};
  for (const auto& [h, g, d] : heads)
    for (const auto& s : spans)
      for (int dtype : {YOUTU_FLOAT32, YOUTU_FLOAT16})
        report(check_gqa(h, g, d, dtype, s), kAttentionBound, "gqa", h, g, d, s[0].context);
  for (const auto& s : {spans[0], spans[1], std::vector<Span>{{180, 300}, {1, 40}}})
    for (int dtype : {YOUTU_FLOAT32, YOUTU_FLOAT16}) {
      report(check_mla(128, dtype, s), kMlaBound, "mla", s[0].tokens, s[0].context, 128, 0);
      report(check_mla(0, dtype, s), kAttentionBound, "mla", s[0].tokens, s[0].context, 0, 0);
    }
  for (int tokens : {1, 2, 7, 40})
    report(check_dense(203, 896, tokens), kFloatBound, "dense", 203, 896, 0, tokens);
}

}  // namespace

int main(int count, char** names) {
  constexpr int kThreads = 3;
  const int64_t bytes = youtu_workspace_bytes(kThreads);
  void* workspace = std::aligned_alloc(64, bytes);
  const char* every[] = {"plain", "avx2", "avx512", "amx", "neon"};
  for (int i = 0; i < (count > 1 ? count - 1 : 5); i++) {
    const char* name = count > 1 ? names[i + 1] : every[i];
    const int32_t status = youtu_init(kThreads, name, workspace, bytes);
    if (status == YOUTU_EUNSUPPORTED) {
      std::printf("%-6s not on this machine\n", name);
      failures += count > 1;
      continue;
    }
    if (status != YOUTU_OK) failures++, std::printf("%-6s SELF-TEST FAILED\n", name);
    check_all();
  }
  std::printf(failures ? "%d FAILED\n" : "all within their bounds\n", failures);
  return failures != 0;
}
