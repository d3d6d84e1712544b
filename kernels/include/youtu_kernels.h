/* The only contract between Python and the native kernels.
 *
 * Plain C ABI, called through ctypes. Every operation returns 0 or a YOUTU_E* code; none
 * allocates, none reads the environment, and only youtu_init keeps a pointer.
 * The last argument of an operation is the stream (CUstream on CUDA, ignored on the CPU).
 * Arguments of a call that would have more than 12 are a struct, NAME_args.
 *
 * Shapes are row-major: T tokens (rows) of a step, H query heads, G key/value heads, D values a
 * head. `void*` activations have the backend's type (float32 on the CPU); a `stride` counts
 * values from one row to the next. Packed layouts are in kernels/README.md.
 */
#ifndef YOUTU_KERNELS_H
#define YOUTU_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define YOUTU_KERNELS_ABI 5
#define YOUTU_OK 0
#define YOUTU_EINVAL 1       /* a shape the kernel does not take */
#define YOUTU_EUNSUPPORTED 2 /* the machine lacks what was asked for */
#define YOUTU_EINTERNAL 3    /* a self-test failed */

#define YOUTU_FLOAT32 0
#define YOUTU_FLOAT16 1

#define YOUTU_PAGE_SIZE 256 /* tokens of one cache page */
#define YOUTU_FEW_ROWS 32   /* CUDA: up to so many, a linear is limited by reading its weights */

#ifdef __CUDACC_RTC__ /* device code needs the types only */
#define YOUTU_API __device__
#else
#define YOUTU_API __attribute__((visibility("default")))
#endif

/* One step's data: api.Batch and api.CacheStorage. Fill it once a step. Pointers are device
 * pointers; a page is [layers, YOUTU_PAGE_SIZE, cache_width] of cache_dtype. */
typedef struct youtu_step {
  const int64_t* positions;      /* [T] */
  const int64_t* slots;          /* [T] page * YOUTU_PAGE_SIZE + offset */
  const int32_t* query_start;    /* [S + 1] */
  const int32_t* context_len;    /* [S] */
  const int32_t* page_table;     /* [S, table_width] */
  const int64_t* page_addresses; /* [pages] */
  int32_t num_tokens;
  int32_t num_seqs;
  int32_t table_width;
  int32_t max_query_len;
  int32_t max_context_len;
  int32_t cache_width;
  int32_t cache_dtype;
  int32_t reserved;
} youtu_step;

/* --- library */

YOUTU_API int32_t youtu_abi(void);

/* Bytes of workspace for that many threads (CUDA: whatever the number). */
YOUTU_API int64_t youtu_workspace_bytes(int32_t threads);

/* CPU: choose the instruction set (`isa`: a name, or "" for the best one this machine has), test
 * it on numbers and start threads - 1 workers. The workspace stays in use until the next call.
 * Not to be called while an operation runs.
 * CUDA: load the device code for the current context; `isa` is an image's name ("sm_87",
 * "compute_80"). The workspace is device memory, all zeros; `threads` means nothing. */
YOUTU_API int32_t youtu_init(int32_t threads, const char* isa, void* workspace, int64_t bytes);

/* The instruction set or image in use; "" before youtu_init. */
YOUTU_API const char* youtu_isa(void);

/* CPU: reads `bytes` once with all threads: what memory gives to the kernels. */
YOUTU_API int32_t youtu_read_memory(const void* data, int64_t bytes, void* stream);

/* --- weights */

/* Bytes of an INT4 weight [n, k] in tile order; 0 if the shape is not taken
 * (n % 8, k % group, group one of 32, 64, 128; CUDA: 128). */
YOUTU_API int64_t youtu_int4_bytes(int32_t n, int32_t k, int32_t group);

/* AutoAWQ GEMM layout -> tile order. packed: youtu_int4_bytes, 64-byte aligned. */
YOUTU_API int32_t youtu_int4_pack(void* packed, const int32_t* qweight, const int32_t* qzeros,
                                  const void* scales, int32_t n, int32_t k, int32_t group,
                                  void* stream);

/* y [T, n] = x [T, k] W^T + bias. bias may be null. */
YOUTU_API int32_t youtu_int4_linear(void* y, const void* x, const void* packed, const void* bias,
                                    int32_t num_tokens, int32_t n, int32_t k, int32_t group,
                                    int64_t x_stride, void* stream);

/* y [T, n] float32 = x [T, k] (weight * scales)^T + bias; weight int8 [n, k], scales fp16 [n];
 * k a multiple of 32, at most 16384. */
YOUTU_API int32_t youtu_int8_linear(void* y, const void* x, const void* weight, const void* scales,
                                    const void* bias, int32_t num_tokens, int32_t n, int32_t k,
                                    int64_t x_stride, void* stream);

/* y [T, n] = x [T, k] W^T + bias, all in the activations' type; k a multiple of 16. */
YOUTU_API int32_t youtu_dense_linear(void* y, const void* x, const void* weight, const void* bias,
                                     int32_t num_tokens, int32_t n, int32_t k, int64_t x_stride,
                                     void* stream);

/* y [T, n] = weight[ids] * scales[ids]. */
YOUTU_API int32_t youtu_int8_embed(void* y, const int64_t* ids, const void* weight,
                                   const void* scales, int32_t num_tokens, int32_t n, int32_t vocab,
                                   void* stream);

/* --- token-wise */

YOUTU_API int32_t youtu_rms_norm(void* y, const void* x, const void* weight, int32_t num_tokens,
                                 int32_t n, int64_t x_stride, float eps, void* stream);

/* residual += x, then y = rms_norm(residual). */
YOUTU_API int32_t youtu_add_rms_norm(void* y, void* residual, const void* x, const void* weight,
                                     int32_t num_tokens, int32_t n, float eps, void* stream);

YOUTU_API int32_t youtu_layer_norm(void* y, const void* x, const void* weight, const void* bias,
                                   int32_t num_tokens, int32_t n, float eps, void* stream);

/* gate_up [T, 2 n] -> y [T, n] = silu(gate) * up. */
YOUTU_API int32_t youtu_silu_mul(void* y, const void* gate_up, int32_t num_tokens, int32_t n,
                                 void* stream);

YOUTU_API int32_t youtu_gelu_tanh(void* y, const void* x, int64_t count, void* stream);

/* --- rotary, cache and attention */

/* qkv [T, (H + 2 G) D]: rotates q and k in place, writes k and v to the cache. cos and sin are
 * float32 [positions, rope_dim / 2]. */
YOUTU_API int32_t youtu_rope_cache(void* qkv, const void* cos, const void* sin, int32_t rope_dim,
                                   int32_t interleaved, const youtu_step* step, int32_t num_heads,
                                   int32_t num_kv_heads, int32_t head_dim, int32_t layer,
                                   void* stream);

/* out [T, H D]; q [T, H, D] with rows q_stride apart; D a multiple of 16, at most 256. */
YOUTU_API int32_t youtu_gqa_attention(void* out, const void* q, int64_t q_stride,
                                      const youtu_step* step, int32_t num_heads,
                                      int32_t num_kv_heads, int32_t head_dim, int32_t layer,
                                      float scale, void* stream);

/* q [T, H, q_dim]: rotates the last rope_dim values of each head in place. latent
 * [T, rank + rope_dim], rows latent_stride apart: rotates its key part and writes it all to the
 * cache. */
YOUTU_API int32_t youtu_mla_rope_cache(void* q, const void* latent, int64_t latent_stride,
                                       const void* cos, const void* sin, int32_t rope_dim,
                                       int32_t interleaved, const youtu_step* step,
                                       int32_t num_heads, int32_t q_dim, int32_t layer,
                                       void* stream);

/* q [T, H, nope + rope], kv_b [H (nope + v_dim), rank] -> out [T, H v_dim]. kv_b is packed INT4, or
 * in the activations' type if group is 0. rank, nope, rope and v_dim are multiples of 16, rank of
 * the group; the cache's width is rank + rope. */
typedef struct youtu_mla_attention_args {
  void* out;
  const void* q;
  const void* kv_b;
  int32_t group;
  int32_t num_heads;
  int32_t nope_dim;
  int32_t rope_dim;
  int32_t v_dim;
  int32_t rank;
  int32_t layer;
  float scale;
} youtu_mla_attention_args;

YOUTU_API int32_t youtu_mla_attention(const youtu_mla_attention_args* args, const youtu_step* step,
                                      void* stream);

/* --- CUDA only */

/* y [T, n] = rms_norm(x + delta) W^T + bias; when gated, y [T, n / 2] = silu(first half of the
 * outputs) * second half. delta may be null; with it, x_out [T, k] = x + delta, not in place.
 * k at most 3072. */
typedef struct youtu_int4_norm_linear_args {
  void* y;
  void* x_out;
  const void* x;
  const void* delta;
  const void* norm;
  const void* packed;
  const void* bias;
  int64_t x_stride;
  int32_t num_tokens;
  int32_t n;
  int32_t k;
  int32_t group;
  int32_t gated;
  float eps;
} youtu_int4_norm_linear_args;

YOUTU_API int32_t youtu_int4_norm_linear(const youtu_int4_norm_linear_args* args, void* stream);

/* y [T, n / 2] = silu(first half of the outputs) * second half, of y = x W^T + bias. For more rows
 * than YOUTU_FEW_ROWS. */
YOUTU_API int32_t youtu_int4_gated(void* y, const void* x, const void* packed, const void* bias,
                                   int32_t num_tokens, int32_t n, int32_t k, int32_t group,
                                   int64_t x_stride, void* stream);

/* ids [rows] = index of the largest of x [rows, n] float32, the first of equals; -1 where that is
 * infinite or a row has a NaN. */
YOUTU_API int32_t youtu_argmax(int64_t* ids, const void* x, int32_t num_rows, int32_t n,
                               void* stream);

/* The inputs of a captured step become the next one's: the token that was found, one place further.
 * Rows without a slot stay as they are. found [2, rows], which may be page-locked memory of the
 * host, gets the tokens too: row *turn % 2 of it, and *turn is one more then. */
YOUTU_API int32_t youtu_advance(int64_t* ids, int64_t* positions, int64_t* slots,
                                int32_t* context_len, const int64_t* next, int64_t* found,
                                int32_t* turn, int32_t num_rows, void* stream);

/* youtu_mla_rope_cache of a latent whose first part is normalised with `norm` [rank] first. */
typedef struct youtu_mla_norm_rope_cache_args {
  void* q;
  const void* latent;
  const void* norm;
  const void* cos;
  const void* sin;
  int64_t latent_stride;
  int32_t rope_dim;
  int32_t interleaved;
  int32_t num_heads;
  int32_t q_dim;
  int32_t layer;
  float eps;
} youtu_mla_norm_rope_cache_args;

YOUTU_API int32_t youtu_mla_norm_rope_cache(const youtu_mla_norm_rope_cache_args* args,
                                            const youtu_step* step, void* stream);

/* youtu_mla_norm_rope_cache and youtu_mla_attention in one; q stays as it is. */
typedef struct youtu_mla_decode_args {
  void* out;
  const void* q;
  const void* latent;
  const void* norm;
  const void* kv_b;
  const void* cos;
  const void* sin;
  int64_t latent_stride;
  int32_t interleaved;
  int32_t group;
  int32_t num_heads;
  int32_t layer;
  float scale;
  float eps;
} youtu_mla_decode_args;

YOUTU_API int32_t youtu_mla_decode(const youtu_mla_decode_args* args, const youtu_step* step,
                                   void* stream);

/* y [count, cache_width] = the first visible entries of a sequence. */
YOUTU_API int32_t youtu_cache_gather(void* y, const youtu_step* step, int32_t sequence,
                                     int32_t count, int32_t layer, void* stream);

#ifdef __cplusplus
}
#endif
#endif
