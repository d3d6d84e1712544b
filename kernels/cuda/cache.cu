// Rotary positions and the paged cache.
#include "common.cuh"
#include "rotary.cuh"

// A block a row: rotates q and k of qkv in place, writes k | v to the cache.
KERNEL __launch_bounds__(256) rope_cache(const RopeArgs a) {
  grid_launch_next();
  grid_wait();
  const int row = blockIdx.x, dim = a.head_dim, half_dim = a.rope_dim / 2;
  const int heads = a.num_heads + a.num_kv_heads;
  half* qkv = static_cast<half*>(a.q) + (int64_t)row * (heads + a.num_kv_heads) * dim;
  half* entry = row_entry(a, row);
  const Angles angles = angles_of(a, row);
  for (int i = threadIdx.x; i < heads * half_dim; i += 256) {
    const int head = i / half_dim;
    rotate_pair(qkv + head * dim, i % half_dim, angles);
  }
  __syncthreads();
  if (entry == nullptr) return;
  const half* kv = qkv + a.num_heads * dim;
  for (int i = threadIdx.x * 8; i < 2 * a.num_kv_heads * dim; i += 256 * 8)
    *reinterpret_cast<uint4*>(entry + i) = *reinterpret_cast<const uint4*>(kv + i);
}

// A block a row: rotates q's last rope_dim values a head, writes latent | key part to the cache.
KERNEL __launch_bounds__(256) mla_rope_cache(const RopeArgs a) {
  grid_launch_next();
  grid_wait();
  __shared__ float shared[8];
  const int row = blockIdx.x;
  half* q = static_cast<half*>(a.q) + (int64_t)row * a.num_heads * a.head_dim;
  const Angles angles = angles_of(a, row);
  const int half_dim = a.rope_dim / 2;
  for (int i = threadIdx.x; i < a.num_heads * half_dim; i += 256)
    rotate_pair(q + i / half_dim * a.head_dim + a.head_dim - a.rope_dim, i % half_dim, angles);
  write_latent(a, row, angles, shared);
}

// The visible entries of a sequence, one after another. A block a token.
KERNEL cache_gather(const GatherArgs a) {
  grid_launch_next();
  grid_wait();
  const int token = blockIdx.x, width = a.step.cache_width;
  const half* from = entry_at(a.step, a.sequence, token, a.layer);
  half* to = static_cast<half*>(a.y) + (int64_t)token * width;
  for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8)
    *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
}
