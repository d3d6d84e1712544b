/* Arguments of the kernels, passed by value from the host side to the device side. */
#ifndef YOUTU_CUDA_ARGS_H
#define YOUTU_CUDA_ARGS_H

#include "youtu_kernels.h"

#define GROUP 128 /* values of k that share a scale */

/* Dynamic shared memory of a block: the host asks for it, the device code asserts that it fits.
 * T4 has 64 KiB, static shared memory included. */
#define ATTEND_SHARED_BYTES 62016 /* mla_attend: AttendShared */
/* int4_linear_norm: rows of k values, each padded by 8, and the norm's gains. */
#define STAGE_STRIDE(k) ((k) + 8)
#define STAGED_SHARED_BYTES(rows, k) (((rows) * STAGE_STRIDE(k) + (k)) * 2)
#define MAX_STAGED_SHARED_BYTES STAGED_SHARED_BYTES(8, 3072)
/* int4_gemm: two buffers of 64 values a token, padded by 8. */
#define GEMM_STRIDE (64 + 8)
#define GEMM_SHARED_BYTES(tokens) (2 * (tokens) * GEMM_STRIDE * 2)

/* An INT4 weight [n, k] in tile order. A tile is 16 rows; a chunk is 64 values of k.
 *
 *   words   [tiles][chunks][32 lanes] of 16 bytes: lane (g, t) = (lane / 4, lane % 4) holds, in
 *           word j, rows g and g + 8 at k = 16 t + 4 j .. + 3 of the chunk. Nibbles, from bit 0:
 *           (g, +0) (g+8, +0) (g, +2) (g+8, +2) (g, +1) (g+8, +1) (g, +3) (g+8, +3),
 *           so that masks and shifts give the fragments of mma.m16n8k16.
 *   scales  [tiles][groups][8] pairs of fp16: rows g and g + 8
 *   zeros   [tiles][groups][8] bytes: row g in the low nibble, g + 8 in the high one
 */
struct Int4 {
  const void* words;
  const void* scales;
  const void* zeros;
  int32_t n, k;
};

struct PackArgs {
  Int4 to;
  const int32_t* qweight;
  const int32_t* qzeros;
  const void* scales;
};

struct LinearArgs {
  Int4 w;
  void* y;           /* [T, n], or [T, n / 2] when gated */
  const void* x;     /* [T, k], rows x_stride apart */
  const void* delta; /* [T, k] added to x first; may be null */
  void* x_out;       /* [T, k] x + delta; with delta only */
  const void* norm;  /* [k] */
  const void* bias;  /* [n]; may be null */
  int64_t x_stride;
  int32_t num_tokens;
  float eps;
};

struct Int8Args {
  const void* weight; /* [n, k] int8 */
  const void* scales; /* [n] */
  const void* bias;   /* [n]; may be null */
  const void* x;      /* [T, k] */
  float* y;           /* [T, n] */
  int64_t x_stride;
  int32_t num_tokens, n, k;
};

struct ArgmaxArgs {
  const float* x; /* [rows, n] */
  int64_t* ids;
  unsigned long long* best; /* workspace [rows]: order of the value << 32 | ~index; zeros between runs */
  int32_t n;
};

struct AdvanceArgs {
  int64_t *ids, *positions, *slots;
  int32_t* context_len;
  const int64_t* next;
  int64_t* found; /* [2, rows] */
  int32_t* turn;
};

struct EmbedArgs {
  void* y;
  const int64_t* ids;
  const void* weight;
  const void* scales;
  int32_t n, vocab;
};

struct NormArgs {
  void* y;
  const void* x;
  void* residual; /* += x first; may be null */
  const void* weight;
  const void* bias; /* layer norm only */
  int64_t x_stride;
  int32_t n;
  float eps;
};

struct MapArgs {
  void* y;
  const void* x;
  int64_t count; /* values of y */
  int32_t n;     /* silu_mul: values of a row of y */
};

struct RopeArgs {
  youtu_step step;
  void* q;            /* MLA: [T, H, q_dim]; GQA: qkv */
  const void* latent; /* MLA */
  const void* norm;   /* MLA: weight of the latent's norm; null: it is normalised already */
  const float* cos;
  const float* sin;
  int64_t latent_stride;
  int32_t rope_dim, interleaved, num_heads, num_kv_heads, head_dim, layer;
  float eps;
};

struct GatherArgs {
  youtu_step step;
  void* y; /* [count, cache_width] */
  int32_t sequence, layer;
};

#define MAX_SPLITS 128

/* Attention of rows `first_row` .. of the step; a row's context is cut into `splits` parts. */
struct AttendArgs {
  youtu_step step;
  const void* q;  /* GQA: [T, H, D], rows q_stride apart; MLA: [T, H, nope + rope] */
  void* q_latent; /* MLA workspace [rows, H, rank + rope] */
  void* partial;  /* workspace [rows, splits, H, D or rank] fp16 */
  float* lse;     /* workspace [rows, splits, H], base 2 */
  void* out;      /* [T, H D or v] */
  Int4 kv_b;      /* MLA */
  int64_t q_stride;
  int32_t first_row, num_rows, splits;
  int32_t num_heads, num_kv_heads, head_dim, layer;
  float scale; /* times log2(e) */
};

struct AbsorbArgs {
  AttendArgs attend;
  RopeArgs rope; /* latent null: q and the cache are ready */
};

#endif
