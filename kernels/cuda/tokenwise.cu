// Norms and activations, for steps with too many rows to fuse them into the linears.
#include "common.cuh"

// A block a row; n is a multiple of 8. Values are read again rather than kept: they are in L1.
template <bool LAYER>
static __device__ __forceinline__ void norm(const NormArgs& a) {
  __shared__ float shared[2][8];
  grid_launch_next();
  grid_wait();
  const int64_t row = blockIdx.x;
  const uint4* x = reinterpret_cast<const uint4*>(static_cast<const half*>(a.x) + row * a.x_stride);
  const uint4* source = x;
  float sum = 0, squares = 0;
  if (a.residual != nullptr) {
    uint4* residual = reinterpret_cast<uint4*>(static_cast<half*>(a.residual) + row * a.n);
    for (int i = threadIdx.x; i < a.n / 8; i += 256) {
      uint4 r = residual[i];
      const uint4 q = x[i];
      r.x = add2(r.x, q.x), r.y = add2(r.y, q.y), r.z = add2(r.z, q.z), r.w = add2(r.w, q.w);
      residual[i] = r;  // the same thread reads it below
    }
    source = residual;
  }
  for (int i = threadIdx.x; i < a.n / 8; i += 256) {
    const uint4 q = source[i];
    const u32 v[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 f = to_float2(v[j]);
      sum += f.x + f.y, squares += f.x * f.x + f.y * f.y;
    }
  }
  float mean = 0;
  if (LAYER) {  // two passes: the difference of large squares would lose digits
    mean = block_sum<8>(sum, shared[0]) / a.n;
    squares = 0;
    for (int i = threadIdx.x; i < a.n / 8; i += 256) {
      const uint4 q = source[i];
      const u32 v[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 f = to_float2(v[j]);
        squares += (f.x - mean) * (f.x - mean) + (f.y - mean) * (f.y - mean);
      }
    }
  }
  const float scale = rsqrtf(block_sum<8>(squares, shared[1]) / a.n + a.eps);
  uint4* y = reinterpret_cast<uint4*>(static_cast<half*>(a.y) + row * a.n);
  for (int i = threadIdx.x; i < a.n / 8; i += 256) {
    const uint4 q = source[i], w = static_cast<const uint4*>(a.weight)[i];
    const uint4 b = LAYER ? static_cast<const uint4*>(a.bias)[i] : make_uint4(0, 0, 0, 0);
    const u32 v[4] = {q.x, q.y, q.z, q.w}, ww[4] = {w.x, w.y, w.z, w.w};
    const u32 bb[4] = {b.x, b.y, b.z, b.w};
    u32 out[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 f = to_float2(v[j]), m = to_float2(ww[j]), c = to_float2(bb[j]);
      out[j] = to_half2((f.x - mean) * scale * m.x + c.x, (f.y - mean) * scale * m.y + c.y);
    }
    y[i] = make_uint4(out[0], out[1], out[2], out[3]);
  }
}

KERNEL __launch_bounds__(256) rms_norm(const NormArgs a) { norm<false>(a); }
KERNEL __launch_bounds__(256) layer_norm(const NormArgs a) { norm<true>(a); }

KERNEL __launch_bounds__(256) silu_mul(const MapArgs a) {
  grid_launch_next();
  grid_wait();
  const int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 2;
  if (i >= a.count) return;
  const half* gate = static_cast<const half*>(a.x) + i / a.n * 2 * a.n + i % a.n;
  const float2 g = __half22float2(*reinterpret_cast<const half2*>(gate));
  const float2 u = __half22float2(*reinterpret_cast<const half2*>(gate + a.n));
  *reinterpret_cast<u32*>(static_cast<half*>(a.y) + i) =
      to_half2(g.x / (1 + __expf(-g.x)) * u.x, g.y / (1 + __expf(-g.y)) * u.y);
}

KERNEL __launch_bounds__(256) gelu_tanh(const MapArgs a) {
  grid_launch_next();
  grid_wait();
  const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= a.count) return;
  const float x = __half2float(static_cast<const half*>(a.x)[i]);
  const float inner = 0.7978845608f * (x + 0.044715f * x * x * x);  // sqrt(2 / pi)
  static_cast<half*>(a.y)[i] = __float2half_rn(0.5f * x * (1 + tanhf(inner)));
}

// Floats in an order that unsigned integers have too; NaN above all.
static __device__ __forceinline__ u32 order_of(float v) {
  const u32 bits = __float_as_uint(v);
  if (v != v) return ~0u;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The largest of each row, ties to the lower index. Blocks: (part, row).
KERNEL __launch_bounds__(256) argmax(const ArgmaxArgs a) {
  grid_launch_next();
  grid_wait();
  __shared__ u64 shared[8];
  const float* row = a.x + (int64_t)blockIdx.y * a.n;
  u64 best = 0;
  for (int i = blockIdx.x * 256 + threadIdx.x; i < a.n; i += gridDim.x * 256)
    best = max(best, (u64)order_of(row[i]) << 32 | (u32)~i);
#pragma unroll
  for (int o = 16; o; o /= 2) best = max(best, __shfl_xor_sync(~0u, best, o));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < 8; i++) best = max(best, shared[i]);
  atomicMax(a.best + blockIdx.y, best);
}

// What argmax found, -1 where that is not finite, and a clean slate for its next run.
KERNEL argmax_take(const ArgmaxArgs a) {
  grid_wait();
  const int i = threadIdx.x;
  const u32 order = a.best[i] >> 32;
  const bool finite = order > 0x007fffffu && order < 0xff800000u;
  a.ids[i] = finite ? (int64_t)(u32)~(u32)a.best[i] : -1;
  a.best[i] = 0;
}

KERNEL advance(const AdvanceArgs a) {
  grid_wait();
  const int i = threadIdx.x, turn = *a.turn;
  a.found[turn % 2 * blockDim.x + i] = a.next[i];
  __syncthreads();
  if (i == 0) *a.turn = turn + 1;
  if (a.slots[i] < 0) return;
  a.ids[i] = max(a.next[i], 0LL);  // whatever: a row that is no number ends its sequence
  a.positions[i]++, a.slots[i]++, a.context_len[i]++;
}
