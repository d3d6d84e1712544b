// What the kernels share: fragments, reductions, where a row's cache entries are.
#pragma once

#include <cuda_fp16.h>

#include "args.h"

#define INFINITY __int_as_float(0x7f800000)
#define KERNEL extern "C" __global__ void

typedef unsigned int u32;
typedef unsigned long long u64;

// From Hopper on a kernel starts while the one before it still runs (the host allows it). What
// that one wrote may only be read after grid_wait(); every kernel calls it, in every block.
static __device__ __forceinline__ void grid_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Let the next kernel start as soon as all blocks of this one have.
static __device__ __forceinline__ void grid_launch_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

static __device__ __forceinline__ float2 to_float2(u32 v) {
  return __half22float2(*reinterpret_cast<const half2*>(&v));
}

static __device__ __forceinline__ u32 to_half2(float a, float b) {
  half2 h = __floats2half2_rn(a, b);
  return *reinterpret_cast<u32*>(&h);
}

static __device__ __forceinline__ u32 add2(u32 a, u32 b) {
  half2 h = __hadd2(*reinterpret_cast<half2*>(&a), *reinterpret_cast<half2*>(&b));
  return *reinterpret_cast<u32*>(&h);
}

// Weights are read once: they must not push activations out of L1.
static __device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// c [16, 8] += a [16, 16] b [16, 8]. sm_75 has half the depth.
static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  const u32 b[2] = {b0, b1};
#pragma unroll
  for (int i = 0; i < 2; i++)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}

static __device__ __forceinline__ void load_matrices(u32 (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((u32)__cvta_generic_to_shared(shared)));
}

static __device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((u32)__cvta_generic_to_shared(shared)));
}

static __device__ __forceinline__ u32 transpose(u32 a) {
  u32 d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
  return d;
}

static __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

static __device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

// Of a block of WARPS full warps; `shared` has WARPS values and may be reused after a barrier.
template <int WARPS>
static __device__ __forceinline__ float block_sum(float v, float* shared) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < WARPS; i++) sum += shared[i];
  return sum;
}

// --- rows and their context

struct Row {
  int sequence;
  int len;  // visible tokens
};

static __device__ __forceinline__ Row row_of(const youtu_step& step, int row) {
  int s = 0;
  if (step.num_seqs == step.num_tokens) {
    s = row;
  } else {
    while (s + 1 < step.num_seqs && step.query_start[s + 1] <= row) s++;
  }
  const int after = step.num_seqs == step.num_tokens ? 0 : step.query_start[s + 1] - 1 - row;
  return {s, step.context_len[s] - after};
}

static __device__ __forceinline__ half* entry_of(const youtu_step& step, int page, int offset,
                                                 int layer) {
  half* base = reinterpret_cast<half*>(step.page_addresses[page]);
  return base + (int64_t)(layer * YOUTU_PAGE_SIZE + offset) * step.cache_width;
}

static __device__ __forceinline__ half* entry_at(const youtu_step& step, int sequence, int token,
                                                 int layer) {
  const int page = step.page_table[sequence * step.table_width + token / YOUTU_PAGE_SIZE];
  return entry_of(step, page, token % YOUTU_PAGE_SIZE, layer);
}

#define SPLIT_TOKENS 32  // the context is split at multiples of this

static __device__ __forceinline__ int tokens_per_split(int len, int splits) {
  const int blocks = (len + SPLIT_TOKENS - 1) / SPLIT_TOKENS;
  return (blocks + splits - 1) / splits * SPLIT_TOKENS;
}
