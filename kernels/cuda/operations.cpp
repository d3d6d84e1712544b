// The C ABI: checks shapes, lays out arguments, launches.
#include <math.h>

#include <algorithm>

#include "args.h"
#include "driver.h"

namespace {

constexpr int SLAB_ROWS = 64;                    // rows of one attention launch
constexpr int64_t PARTIAL_VALUES = 256 * 8192;   // of all splits of a slab
constexpr int MAX_HEADS = 64, MAX_ARGMAX_ROWS = 1024;
constexpr int MLA_RANK = 512, MLA_ROPE = 64, MLA_NOPE = 128, MLA_VALUE = 128;
constexpr int64_t QUERY_VALUES = int64_t(SLAB_ROWS) * 16 * (MLA_RANK + MLA_ROPE);
constexpr float LOG2_E = 1.4426950408889634f;

struct Workspace {  // device memory
  unsigned long long best[MAX_ARGMAX_ROWS];
  uint16_t queries[QUERY_VALUES];
  uint16_t partial[PARTIAL_VALUES];
  float lse[PARTIAL_VALUES / 16];  // a head has at least 16 values
};

Workspace* workspace;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool takes_int4(int32_t n, int32_t k, int32_t group) {
  return n > 0 && k > 0 && n % 8 == 0 && group == GROUP && k % GROUP == 0;
}

int64_t tiles_of(int32_t n) { return divide_up(n, 16); }

Int4 int4_of(const void* packed, int32_t n, int32_t k) {
  const char* words = static_cast<const char*>(packed);
  const char* scales = words + tiles_of(n) * (k / 64) * 512;
  return {words, scales, scales + tiles_of(n) * (k / GROUP) * 32, n, k};
}

int32_t gemm(const LinearArgs& args, bool gated, void* stream) {
  const int64_t width = divide_up(args.w.n, 128);
  // Large blocks reuse more, if there are enough of them.
  const bool large = width * divide_up(args.num_tokens, 128) >= 2 * driver_num_multiprocessors();
  const int tokens = large ? 128 : 64;
  const Kernel kernel = gated ? (large ? K_int4_gemm_gated_128 : K_int4_gemm_gated_64)
                              : (large ? K_int4_gemm_128 : K_int4_gemm_64);
  return driver_launch(kernel, {width, divide_up(args.num_tokens, tokens)}, 256, &args, stream,
                       GEMM_SHARED_BYTES(tokens));
}

// Query rows of one launch, and parts of the context so that the blocks fill the device.
struct Slab {
  int32_t rows, splits;
};

Slab slab_of(const youtu_step& step, int32_t num_heads, int32_t values) {
  const int64_t entry = int64_t(num_heads) * values;
  const int64_t rows = std::min<int64_t>({step.num_tokens, SLAB_ROWS, PARTIAL_VALUES / entry});
  const int64_t splits = std::min<int64_t>({256 / rows, MAX_SPLITS, PARTIAL_VALUES / entry / rows});
  return {static_cast<int32_t>(rows), static_cast<int32_t>(std::max<int64_t>(splits, 1))};
}

bool takes_step(const youtu_step& step) {
  return step.cache_dtype == YOUTU_FLOAT16 && step.cache_width % 8 == 0 && step.num_tokens > 0;
}

}  // namespace

// --- library

int32_t youtu_abi(void) { return YOUTU_KERNELS_ABI; }

int64_t youtu_workspace_bytes(int32_t) { return sizeof(Workspace); }

int32_t youtu_init(int32_t, const char* isa, void* memory, int64_t bytes) {
  if (bytes < static_cast<int64_t>(sizeof(Workspace)) || !aligned(memory)) return YOUTU_EINVAL;
  workspace = static_cast<Workspace*>(memory);
  return driver_load(isa);
}

const char* youtu_isa(void) { return driver_isa(); }

// --- weights

int64_t youtu_int4_bytes(int32_t n, int32_t k, int32_t group) {
  if (!takes_int4(n, k, group)) return 0;
  return tiles_of(n) * (k / 64) * 512 + tiles_of(n) * (k / group) * (32 + 8);
}

int32_t youtu_int4_pack(void* packed, const int32_t* qweight, const int32_t* qzeros,
                        const void* scales, int32_t n, int32_t k, int32_t group, void* stream) {
  if (!takes_int4(n, k, group) || !aligned(packed)) return YOUTU_EINVAL;
  const PackArgs args = {int4_of(packed, n, k), qweight, qzeros, scales};
  return driver_launch(K_int4_pack, {k / 64, tiles_of(n)}, 32, &args, stream);
}

int32_t youtu_int4_linear(void* y, const void* x, const void* packed, const void* bias,
                          int32_t num_tokens, int32_t n, int32_t k, int32_t group,
                          int64_t x_stride, void* stream) {
  if (!takes_int4(n, k, group) || !aligned(x) || x_stride % 8) return YOUTU_EINVAL;
  LinearArgs args = {};
  args.w = int4_of(packed, n, k);
  args.y = y, args.x = x, args.bias = bias;
  args.x_stride = x_stride, args.num_tokens = num_tokens;
  if (num_tokens > YOUTU_FEW_ROWS) return gemm(args, false, stream);
  const Grid grid = {tiles_of(n), divide_up(num_tokens, 8)};
  if (k >= 4096) return driver_launch(K_int4_linear_long, grid, 512, &args, stream);
  return driver_launch(K_int4_linear_short, grid, 256, &args, stream);
}

int32_t youtu_int4_gated(void* y, const void* x, const void* packed, const void* bias,
                         int32_t num_tokens, int32_t n, int32_t k, int32_t group,
                         int64_t x_stride, void* stream) {
  if (!takes_int4(n, k, group) || n % 32 || !aligned(x) || x_stride % 8) return YOUTU_EINVAL;
  LinearArgs args = {};
  args.w = int4_of(packed, n, k);
  args.y = y, args.x = x, args.bias = bias;
  args.x_stride = x_stride, args.num_tokens = num_tokens;
  return gemm(args, true, stream);
}

int32_t youtu_int4_norm_linear(const youtu_int4_norm_linear_args* args, void* stream) {
  const youtu_int4_norm_linear_args& a = *args;
  if (!takes_int4(a.n, a.k, a.group) || !aligned(a.x) || !aligned(a.delta) || !aligned(a.x_out) ||
      !aligned(a.norm) || a.x_stride % 8 || (a.delta && !a.x_out) || (a.gated && a.n % 32))
    return YOUTU_EINVAL;
  const LinearArgs linear = {int4_of(a.packed, a.n, a.k), a.y,    a.x,        a.delta,      a.x_out,
                             a.norm,                      a.bias, a.x_stride, a.num_tokens, a.eps};
  const Grid grid = {tiles_of(a.gated ? a.n / 2 : a.n), divide_up(a.num_tokens, 8)};
  const Kernel kernel = a.gated ? K_int4_linear_norm_gated : K_int4_linear_norm;
  const int32_t shared = STAGED_SHARED_BYTES(std::min(a.num_tokens, 8), a.k);
  if (shared > MAX_STAGED_SHARED_BYTES) return YOUTU_EINVAL;
  return driver_launch(kernel, grid, 256, &linear, stream, shared);
}

int32_t youtu_int8_linear(void* y, const void* x, const void* weight, const void* scales,
                          const void* bias, int32_t num_tokens, int32_t n, int32_t k,
                          int64_t x_stride, void* stream) {
  if (k % 16 || !aligned(x) || !aligned(weight) || x_stride % 8) return YOUTU_EINVAL;
  const Int8Args args = {weight,   scales,     bias, x, static_cast<float*>(y),
                         x_stride, num_tokens, n,    k};
  const int64_t blocks = std::min<int64_t>(divide_up(tiles_of(n), 8),
                                           4 * driver_num_multiprocessors());
  return driver_launch(K_int8_linear, {blocks, divide_up(num_tokens, 8)}, 256, &args, stream);
}

int32_t youtu_int8_embed(void* y, const int64_t* ids, const void* weight, const void* scales,
                         int32_t num_tokens, int32_t n, int32_t vocab, void* stream) {
  if (n % 4) return YOUTU_EINVAL;
  const EmbedArgs args = {y, ids, weight, scales, n, vocab};
  return driver_launch(K_int8_embed, {num_tokens}, 256, &args, stream);
}

int32_t youtu_argmax(int64_t* ids, const void* x, int32_t num_rows, int32_t n, void* stream) {
  if (num_rows > MAX_ARGMAX_ROWS) return YOUTU_EINVAL;
  const ArgmaxArgs args = {static_cast<const float*>(x), ids, workspace->best, n};
  if (num_rows == 0) return YOUTU_OK;
  const int32_t status = driver_launch(K_argmax, {64, num_rows}, 256, &args, stream);
  return status ? status : driver_launch(K_argmax_take, {1}, num_rows, &args, stream);
}

int32_t youtu_advance(int64_t* ids, int64_t* positions, int64_t* slots, int32_t* context_len,
                      const int64_t* next, int64_t* found, int32_t* turn, int32_t num_rows,
                      void* stream) {
  if (num_rows > 1024) return YOUTU_EINVAL;
  const AdvanceArgs args = {ids, positions, slots, context_len, next, found, turn};
  return driver_launch(K_advance, {1}, num_rows, &args, stream);
}

// --- token-wise

int32_t youtu_rms_norm(void* y, const void* x, const void* weight, int32_t num_tokens, int32_t n,
                       int64_t x_stride, float eps, void* stream) {
  if (n % 8 || x_stride % 8 || !aligned(x)) return YOUTU_EINVAL;
  const NormArgs args = {y, x, nullptr, weight, nullptr, x_stride, n, eps};
  return driver_launch(K_rms_norm, {num_tokens}, 256, &args, stream);
}

int32_t youtu_add_rms_norm(void* y, void* residual, const void* x, const void* weight,
                           int32_t num_tokens, int32_t n, float eps, void* stream) {
  if (n % 8) return YOUTU_EINVAL;
  const NormArgs args = {y, x, residual, weight, nullptr, n, n, eps};
  return driver_launch(K_rms_norm, {num_tokens}, 256, &args, stream);
}

int32_t youtu_layer_norm(void* y, const void* x, const void* weight, const void* bias,
                         int32_t num_tokens, int32_t n, float eps, void* stream) {
  if (n % 8) return YOUTU_EINVAL;
  const NormArgs args = {y, x, nullptr, weight, bias, n, n, eps};
  return driver_launch(K_layer_norm, {num_tokens}, 256, &args, stream);
}

int32_t youtu_silu_mul(void* y, const void* gate_up, int32_t num_tokens, int32_t n,
                       void* stream) {
  if (n % 2) return YOUTU_EINVAL;
  const MapArgs args = {y, gate_up, int64_t(num_tokens) * n, n};
  return driver_launch(K_silu_mul, {divide_up(args.count, 512)}, 256, &args, stream);
}

int32_t youtu_gelu_tanh(void* y, const void* x, int64_t count, void* stream) {
  const MapArgs args = {y, x, count, 0};
  return driver_launch(K_gelu_tanh, {divide_up(count, 256)}, 256, &args, stream);
}

// --- rotary, cache and attention

int32_t youtu_rope_cache(void* qkv, const void* cos, const void* sin, int32_t rope_dim,
                         int32_t interleaved, const youtu_step* step, int32_t num_heads,
                         int32_t num_kv_heads, int32_t head_dim, int32_t layer, void* stream) {
  if (!takes_step(*step) || head_dim % 8 || !aligned(qkv)) return YOUTU_EINVAL;
  RopeArgs args = {};
  args.step = *step, args.q = qkv;
  args.cos = static_cast<const float*>(cos), args.sin = static_cast<const float*>(sin);
  args.rope_dim = rope_dim, args.interleaved = interleaved, args.num_heads = num_heads;
  args.num_kv_heads = num_kv_heads, args.head_dim = head_dim, args.layer = layer;
  return driver_launch(K_rope_cache, {step->num_tokens}, 256, &args, stream);
}

int32_t youtu_gqa_attention(void* out, const void* q, int64_t q_stride, const youtu_step* step,
                            int32_t num_heads, int32_t num_kv_heads, int32_t head_dim,
                            int32_t layer, float scale, void* stream) {
  if (!takes_step(*step) || head_dim % 16 || head_dim > 256 || num_heads % num_kv_heads ||
      num_heads > MAX_HEADS || !aligned(q) || q_stride % 8)
    return YOUTU_EINVAL;
  const Slab slab = slab_of(*step, num_heads, head_dim);
  AttendArgs args = {};
  args.step = *step, args.q = q, args.out = out;
  args.partial = workspace->partial, args.lse = workspace->lse;
  args.q_stride = q_stride, args.splits = slab.splits, args.num_heads = num_heads;
  args.num_kv_heads = num_kv_heads, args.head_dim = head_dim, args.layer = layer;
  args.scale = scale * LOG2_E;
  const int group = num_heads / num_kv_heads, size = head_dim <= 64 ? 0 : head_dim <= 128 ? 1 : 2;
  const int heads = group == 1 ? 1 : 8;
  const Kernel kernel = static_cast<Kernel>(K_gqa_attend_64_1 + 2 * size + (heads > 1));
  const int64_t parts = num_kv_heads * divide_up(group, heads);
  for (int32_t row = 0; row < step->num_tokens; row += slab.rows) {
    args.first_row = row, args.num_rows = std::min(slab.rows, step->num_tokens - row);
    int32_t status = driver_launch(kernel, {slab.splits, args.num_rows, parts}, 128, &args, stream);
    if (!status)
      status = driver_launch(K_gqa_combine, {num_heads, args.num_rows}, 128, &args, stream);
    if (status) return status;
  }
  return YOUTU_OK;
}

namespace {

template <class Args>
AttendArgs mla_attend_args(const Args& a) {
  AttendArgs attend = {};
  attend.q = a.q, attend.out = a.out, attend.num_heads = a.num_heads;
  attend.kv_b = int4_of(a.kv_b, a.num_heads * (MLA_NOPE + MLA_VALUE), MLA_RANK);
  attend.layer = a.layer, attend.scale = a.scale * LOG2_E;
  return attend;
}

int32_t mla(AbsorbArgs args, const youtu_step* step, void* stream) {
  AttendArgs& attend = args.attend;
  if (!takes_step(*step) || step->cache_width != MLA_RANK + MLA_ROPE || attend.num_heads % 16 ||
      attend.num_heads > MAX_HEADS)
    return YOUTU_EINVAL;
  Slab slab = slab_of(*step, attend.num_heads, MLA_RANK);
  slab.rows = std::min(slab.rows, SLAB_ROWS * 16 / attend.num_heads);
  attend.step = *step, attend.splits = slab.splits;
  attend.q_latent = workspace->queries, attend.partial = workspace->partial;
  attend.lse = workspace->lse;
  const int64_t heads = attend.num_heads;
  for (int32_t row = 0; row < step->num_tokens; row += slab.rows) {
    attend.first_row = row, attend.num_rows = std::min(slab.rows, step->num_tokens - row);
    const int64_t eights = divide_up(attend.num_rows, 8);
    // Two blocks a row besides the projection's.
    int32_t status = driver_launch(K_mla_absorb, {heads * (MLA_RANK / 64) + 16, eights}, 256,
                                   &args, stream);
    if (!status)
      status = driver_launch(K_mla_attend, {slab.splits, attend.num_rows, heads / 16}, 256,
                             &attend, stream, ATTEND_SHARED_BYTES);
    if (!status)
      status = driver_launch(K_mla_output, {heads * (MLA_VALUE / 16), eights}, 256, &attend,
                             stream);
    if (status) return status;
  }
  return YOUTU_OK;
}

}  // namespace

int32_t youtu_mla_rope_cache(void* q, const void* latent, int64_t latent_stride, const void* cos,
                             const void* sin, int32_t rope_dim, int32_t interleaved,
                             const youtu_step* step, int32_t num_heads, int32_t q_dim,
                             int32_t layer, void* stream) {
  const youtu_mla_norm_rope_cache_args args = {
      q, latent, nullptr, cos, sin, latent_stride, rope_dim, interleaved, num_heads, q_dim, layer, 0};
  return youtu_mla_norm_rope_cache(&args, step, stream);
}

int32_t youtu_mla_norm_rope_cache(const youtu_mla_norm_rope_cache_args* args,
                                  const youtu_step* step, void* stream) {
  if (!takes_step(*step)) return YOUTU_EINVAL;
  RopeArgs rope = {};
  rope.step = *step, rope.q = args->q, rope.latent = args->latent, rope.norm = args->norm;
  rope.cos = static_cast<const float*>(args->cos), rope.sin = static_cast<const float*>(args->sin);
  rope.latent_stride = args->latent_stride, rope.rope_dim = args->rope_dim;
  rope.interleaved = args->interleaved, rope.num_heads = args->num_heads;
  rope.head_dim = args->q_dim, rope.layer = args->layer, rope.eps = args->eps;
  return driver_launch(K_mla_rope_cache, {step->num_tokens}, 256, &rope, stream);
}

int32_t youtu_mla_attention(const youtu_mla_attention_args* args, const youtu_step* step,
                            void* stream) {
  const youtu_mla_attention_args& a = *args;
  if (a.nope_dim != MLA_NOPE || a.rope_dim != MLA_ROPE || a.v_dim != MLA_VALUE ||
      a.rank != MLA_RANK || a.group != GROUP)
    return YOUTU_EINVAL;
  AbsorbArgs absorb = {};
  absorb.attend = mla_attend_args(a);
  return mla(absorb, step, stream);
}

int32_t youtu_mla_decode(const youtu_mla_decode_args* args, const youtu_step* step, void* stream) {
  const youtu_mla_decode_args& a = *args;
  if (a.group != GROUP || !a.norm || a.latent_stride % 2) return YOUTU_EINVAL;
  AbsorbArgs absorb = {};
  absorb.attend = mla_attend_args(a);
  RopeArgs& rope = absorb.rope;
  rope.step = *step, rope.latent = a.latent, rope.norm = a.norm;
  rope.latent_stride = a.latent_stride;
  rope.cos = static_cast<const float*>(a.cos), rope.sin = static_cast<const float*>(a.sin);
  rope.rope_dim = MLA_ROPE, rope.interleaved = a.interleaved, rope.layer = a.layer, rope.eps = a.eps;
  return mla(absorb, step, stream);
}

int32_t youtu_cache_gather(void* y, const youtu_step* step, int32_t sequence, int32_t count,
                           int32_t layer, void* stream) {
  if (!takes_step(*step)) return YOUTU_EINVAL;
  const GatherArgs args = {*step, y, sequence, layer};
  return driver_launch(K_cache_gather, {count}, 64, &args, stream);
}
