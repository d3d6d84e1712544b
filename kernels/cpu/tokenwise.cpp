#include "engine.h"

using namespace youtu;

namespace {
inline float* row_of(void* p, int row, int64_t stride) {
  return static_cast<float*>(p) + row * stride;
}
inline const float* row_of(const void* p, int row, int64_t stride) {
  return static_cast<const float*>(p) + row * stride;
}
inline const float* floats(const void* p) { return static_cast<const float*>(p); }
}  // namespace

int32_t youtu_rms_norm(void* y, const void* x, const void* weight, int32_t num_tokens, int32_t n,
                       int64_t x_stride, float eps, void*) {
  if (n <= 0) return YOUTU_EINVAL;
  parallel_rows(num_tokens, n, [&](int t, int) {
    engine.isa->rms_norm(row_of(y, t, n), row_of(x, t, x_stride), floats(weight), n, eps);
  });
  return YOUTU_OK;
}

int32_t youtu_add_rms_norm(void* y, void* residual, const void* x, const void* weight,
                           int32_t num_tokens, int32_t n, float eps, void*) {
  if (n <= 0) return YOUTU_EINVAL;
  parallel_rows(num_tokens, n, [&](int t, int) {
    engine.isa->add_rms_norm(row_of(y, t, n), row_of(residual, t, n), row_of(x, t, n),
                             floats(weight), n, eps);
  });
  return YOUTU_OK;
}

int32_t youtu_layer_norm(void* y, const void* x, const void* weight, const void* bias,
                         int32_t num_tokens, int32_t n, float eps, void*) {
  if (n <= 0) return YOUTU_EINVAL;
  parallel_rows(num_tokens, n, [&](int t, int) {
    engine.isa->layer_norm(row_of(y, t, n), row_of(x, t, n), floats(weight), floats(bias), n, eps);
  });
  return YOUTU_OK;
}

int32_t youtu_silu_mul(void* y, const void* gate_up, int32_t num_tokens, int32_t n, void*) {
  if (n <= 0) return YOUTU_EINVAL;
  parallel_rows(num_tokens, n, [&](int t, int) {
    const float* gate = row_of(gate_up, t, 2 * static_cast<int64_t>(n));
    engine.isa->silu_mul(row_of(y, t, n), gate, gate + n, n);
  });
  return YOUTU_OK;
}

int32_t youtu_gelu_tanh(void* y, const void* x, int64_t count, void*) {
  constexpr int64_t kStep = 8192;
  parallel(static_cast<int>((count + kStep - 1) / kStep), [&](int chunk, int) {
    const int64_t begin = chunk * kStep, end = begin + kStep < count ? begin + kStep : count;
    engine.isa->gelu_tanh(static_cast<float*>(y) + begin, floats(x) + begin, end - begin);
  });
  return YOUTU_OK;
}

namespace {

inline RopeJob rope_job(const void* cos, const void* sin, int dim, int interleaved,
                        int64_t position) {
  const int64_t row = position * (dim / 2);
  return {floats(cos) + row, floats(sin) + row, dim, interleaved != 0};
}

inline char* cache_entry(const youtu_step& step, int token, int layer) {
  const int64_t slot = step.slots[token];
  return reinterpret_cast<char*>(step.page_addresses[slot / YOUTU_PAGE_SIZE]) +
         layer_bytes(step, layer) +
         slot % YOUTU_PAGE_SIZE * step.cache_width * cache_value_bytes(step);
}

}  // namespace

int32_t youtu_rope_cache(void* qkv, const void* cos, const void* sin, int32_t rope_dim,
                         int32_t interleaved, const youtu_step* step, int32_t num_heads,
                         int32_t num_kv_heads, int32_t head_dim, int32_t layer, void*) {
  if (rope_dim > head_dim || rope_dim % 2 || step->cache_width != 2 * num_kv_heads * head_dim)
    return YOUTU_EINVAL;
  const int64_t stride = static_cast<int64_t>(num_heads + 2 * num_kv_heads) * head_dim;
  parallel_rows(step->num_tokens, stride, [&](int t, int) {
    float* row = row_of(qkv, t, stride);
    const RopeJob rope = rope_job(cos, sin, rope_dim, interleaved, step->positions[t]);
    for (int h = 0; h < num_heads + num_kv_heads; h++) engine.isa->rotate(row + h * head_dim, rope);
    engine.isa->store_cache(cache_entry(*step, t, layer), row + num_heads * head_dim,
                            step->cache_width, step->cache_dtype);
  });
  return YOUTU_OK;
}

int32_t youtu_mla_rope_cache(void* q, const void* latent, int64_t latent_stride, const void* cos,
                             const void* sin, int32_t rope_dim, int32_t interleaved,
                             const youtu_step* step, int32_t num_heads, int32_t q_dim,
                             int32_t layer, void*) {
  constexpr int kMostRope = 256;
  const int rank = step->cache_width - rope_dim;
  if (rope_dim > q_dim || rope_dim % 2 || rope_dim > kMostRope || rank <= 0) return YOUTU_EINVAL;
  const int64_t stride = static_cast<int64_t>(num_heads) * q_dim;
  parallel_rows(step->num_tokens, stride, [&](int t, int) {
    const RopeJob rope = rope_job(cos, sin, rope_dim, interleaved, step->positions[t]);
    for (int h = 0; h < num_heads; h++)
      engine.isa->rotate(row_of(q, t, stride) + (h + 1) * q_dim - rope_dim, rope);
    const float* entry = row_of(latent, t, latent_stride);
    float key[kMostRope];
    for (int i = 0; i < rope_dim; i++) key[i] = entry[rank + i];
    engine.isa->rotate(key, rope);
    char* out = cache_entry(*step, t, layer);
    engine.isa->store_cache(out, entry, rank, step->cache_dtype);
    engine.isa->store_cache(out + rank * cache_value_bytes(*step), key, rope_dim,
                            step->cache_dtype);
  });
  return YOUTU_OK;
}
