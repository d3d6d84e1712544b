// Linears of few rows, limited by the reading of weights. Tensor cores do up to 8 rows at the cost
// of one: a tile of 16 weight rows is the left operand, the activations are the right one.
#include "common.cuh"

// A lane's 16 activations of a chunk: k = 16 t .. of row g. `delta` is added in fp16.
struct Activations {
  u32 v[8];
};

static __device__ __forceinline__ Activations load_activations(const half* x, const half* delta,
                                                               bool live) {
  Activations a;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint4 q = make_uint4(0, 0, 0, 0);
    if (live) q = reinterpret_cast<const uint4*>(x)[i];
    a.v[4 * i] = q.x, a.v[4 * i + 1] = q.y, a.v[4 * i + 2] = q.z, a.v[4 * i + 3] = q.w;
  }
  if (delta != nullptr && live) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint4 q = reinterpret_cast<const uint4*>(delta)[i];
      a.v[4 * i] = add2(a.v[4 * i], q.x), a.v[4 * i + 1] = add2(a.v[4 * i + 1], q.y);
      a.v[4 * i + 2] = add2(a.v[4 * i + 2], q.z), a.v[4 * i + 3] = add2(a.v[4 * i + 3], q.w);
    }
  }
  return a;
}

// y = x W^T + bias for 8 rows of x; blockIdx.x is a tile, blockIdx.y eight rows. WARPS warps share
// k, UNROLL chunks each in flight.
// NORM: x is rms_norm(x + delta) * norm. GATED: y = silu(first half) * second half.
template <int WARPS, int UNROLL, bool NORM, bool GATED>
static __device__ __forceinline__ void int4_linear(const LinearArgs& a) {
  constexpr int PARTS = GATED ? 2 : 1;
  __shared__ float2 partial[PARTS * WARPS][16][4];
  __shared__ float squares[PARTS * WARPS][8];
  const int warp = threadIdx.x / 32 % WARPS, part = threadIdx.x / 32 / WARPS;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int tile = blockIdx.x + part * gridDim.x, chunks = a.w.k / 64;
  const int row = blockIdx.y * 8 + g;
  const half* x = static_cast<const half*>(a.x) + row * a.x_stride + t * 16;
  const half* delta = static_cast<const half*>(a.delta);
  if (delta != nullptr) delta += (int64_t)row * a.w.k + t * 16;
  const bool row_live = row < a.num_tokens;

  uint4 words[UNROLL];
  u32 scales[UNROLL], zeros[UNROLL];
  auto load_weights = [&](int base) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int chunk = base + u * WARPS;
      if (chunk >= chunks) break;
      words[u] = load_words(a.w, tile, chunk);
      const int meta = meta_index(a.w, tile, chunk * 64 / a.w.group);
      scales[u] = __ldg(static_cast<const u32*>(a.w.scales) + meta);
      zeros[u] = __ldg(static_cast<const uint8_t*>(a.w.zeros) + meta);
    }
  };
  load_weights(warp);  // under way while the norm is computed

  float rms = 1;
  if (NORM) {
    float sum = 0;
    for (int chunk = warp; chunk < chunks; chunk += WARPS) {
      const int k = chunk * 64;
      Activations v = load_activations(x + k, delta ? delta + k : nullptr, row_live);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float2 f = to_float2(v.v[i]);
        sum += f.x * f.x + f.y * f.y;
      }
      if (delta && row_live && blockIdx.x == 0 && part == 0) {
        uint4* out = reinterpret_cast<uint4*>(static_cast<half*>(a.x_out) +
                                              (int64_t)row * a.w.k + k + t * 16);
        out[0] = make_uint4(v.v[0], v.v[1], v.v[2], v.v[3]);
        out[1] = make_uint4(v.v[4], v.v[5], v.v[6], v.v[7]);
      }
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (t == 0) squares[part * WARPS + warp][g] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += squares[part * WARPS + i][g];
    rms = rsqrtf(sum / a.w.k + a.eps);
  }

  float total[4] = {0, 0, 0, 0};
  for (int base = warp; base < chunks; base += WARPS * UNROLL) {
    if (base != warp) load_weights(base);
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int chunk = base + u * WARPS, k = chunk * 64;
      if (chunk >= chunks) break;
      Activations v = load_activations(x + k, delta ? delta + k : nullptr, row_live);
      if (NORM) {
        const uint4* norm = reinterpret_cast<const uint4*>(static_cast<const half*>(a.norm) + k) +
                            2 * t;
        const uint4 n0 = __ldg(norm), n1 = __ldg(norm + 1);
        const u32 n[8] = {n0.x, n0.y, n0.z, n0.w, n1.x, n1.y, n1.z, n1.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const float2 f = to_float2(v.v[i]), w = to_float2(n[i]);
          v.v[i] = to_half2(f.x * rms * w.x, f.y * rms * w.y);
        }
      }
      const u32 word[4] = {words[u].x, words[u].y, words[u].z, words[u].w};
      const Zeros z = zeros_of(zeros[u]);
      float sum[4] = {0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 w[4];
        expand(w, word[j], z);
        mma(sum, w, v.v[2 * j], v.v[2 * j + 1]);
      }
      const float2 s = to_float2(scales[u]);
      total[0] += s.x * sum[0], total[1] += s.x * sum[1];
      total[2] += s.y * sum[2], total[3] += s.y * sum[3];
    }
  }
  partial[part * WARPS + warp][g][t] = make_float2(total[0], total[1]);
  partial[part * WARPS + warp][g + 8][t] = make_float2(total[2], total[3]);
  __syncthreads();

  if (threadIdx.x >= 128) return;
  const int out_row = threadIdx.x / 8, column = threadIdx.x % 8;
  const int token = blockIdx.y * 8 + column;
  float sums[PARTS];
#pragma unroll
  for (int p = 0; p < PARTS; p++) {
    sums[p] = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
      sums[p] += reinterpret_cast<const float*>(partial[p * WARPS + i])[threadIdx.x];
    const int n = (blockIdx.x + p * gridDim.x) * 16 + out_row;
    if (a.bias != nullptr && n < a.w.n) sums[p] += __half2float(static_cast<const half*>(a.bias)[n]);
  }
  const int width = GATED ? a.w.n / 2 : a.w.n, n = blockIdx.x * 16 + out_row;
  if (token >= a.num_tokens || n >= width) return;
  float y = sums[0];
  if (GATED) y = y / (1 + __expf(-y)) * sums[PARTS - 1];
  static_cast<half*>(a.y)[(int64_t)token * width + n] = __float2half_rn(y);
}

// Long k (down projections) takes more warps, so that a block still reads it in one go.
KERNEL __launch_bounds__(256) int4_linear_short(const LinearArgs a) {
  int4_linear<8, 4, false, false>(a);
}
KERNEL __launch_bounds__(512) int4_linear_long(const LinearArgs a) {
  int4_linear<16, 6, false, false>(a);
}
KERNEL __launch_bounds__(256) int4_linear_norm(const LinearArgs a) {
  int4_linear<8, 4, true, false>(a);
}
// Three blocks fit on an SM: a large MLP's are then all there at once.
KERNEL __launch_bounds__(256, 3) int4_linear_norm_gated(const LinearArgs a) {
  int4_linear<4, 8, true, true>(a);
}

// --- packing and unpacking

static __device__ __forceinline__ u32 nibble_of(const int32_t* words, int64_t row, int n,
                                                int column) {
  const int shift = column % 8 / 2 * 4 + column % 2 * 16;  // AutoAWQ's order, ops/awq.py
  return (u32)words[row * (n / 8) + column / 8] >> shift & 15;
}

// A block of 32 threads per (chunk, tile).
KERNEL int4_pack(const PackArgs a) {
  const Int4& w = a.to;
  const int chunk = blockIdx.x, tile = blockIdx.y, g = threadIdx.x / 4, t = threadIdx.x % 4;
  u32 word[4];
  for (int j = 0; j < 4; j++) {
    word[j] = 0;
    for (int i = 0; i < 8; i++) {  // i: row g or g + 8, then k + 0 .. 3
      const int n = tile * 16 + g + i % 2 * 8, kk = i / 2, k = chunk * 64 + t * 16 + j * 4 + kk;
      const int nibble = i % 2 + kk / 2 * 2 + kk % 2 * 4;
      if (n < w.n && k < w.k) word[j] |= nibble_of(a.qweight, k, w.n, n) << (4 * nibble);
    }
  }
  uint4* words = static_cast<uint4*>(const_cast<void*>(w.words));
  words[((int64_t)tile * gridDim.x + chunk) * 32 + threadIdx.x] =
      make_uint4(word[0], word[1], word[2], word[3]);

  const int groups = w.k / w.group;
  if (t != 0) return;
  for (int group = chunk; group < groups; group += gridDim.x) {
    const int n0 = tile * 16 + g, n1 = n0 + 8, meta = meta_index(w, tile, group);
    const half* scales = static_cast<const half*>(a.scales) + (int64_t)group * w.n;
    half* to = static_cast<half*>(const_cast<void*>(w.scales)) + 2 * meta;
    to[0] = n0 < w.n ? scales[n0] : __ushort_as_half(0);
    to[1] = n1 < w.n ? scales[n1] : __ushort_as_half(0);
    const u32 z0 = n0 < w.n ? nibble_of(a.qzeros, group, w.n, n0) : 0;
    const u32 z1 = n1 < w.n ? nibble_of(a.qzeros, group, w.n, n1) : 0;
    static_cast<uint8_t*>(const_cast<void*>(w.zeros))[meta] = z0 | z1 << 4;
  }
}

// Rows first_row .. as fp16 [rows, k], for cuBLAS. A warp does a chunk of a tile.
KERNEL __launch_bounds__(256) int4_dequantize(const DequantizeArgs a) {
  const int chunks = a.w.k / 64, tile = a.first_row / 16 + blockIdx.y;
  const int chunk = blockIdx.x * 8 + threadIdx.x / 32;
  if (chunk >= chunks) return;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const uint4 q = load_words(a.w, tile, chunk);
  const int meta = meta_index(a.w, tile, chunk * 64 / a.w.group);
  const half2 s = static_cast<const half2*>(a.w.scales)[meta];
  const half2 s0 = __low2half2(s), s1 = __high2half2(s);
  const Zeros z = zeros_of(static_cast<const uint8_t*>(a.w.zeros)[meta]);
  const u32 word[4] = {q.x, q.y, q.z, q.w};
  half2 low[8], high[8];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    u32 w[4];
    expand(w, word[j], z);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      low[2 * j + i] = __hmul2(*reinterpret_cast<half2*>(&w[2 * i]), s0);
      high[2 * j + i] = __hmul2(*reinterpret_cast<half2*>(&w[2 * i + 1]), s1);
    }
  }
  const int n = blockIdx.y * 16 + g;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (a.first_row + n + 8 * r >= a.w.n) continue;
    const uint4* from = reinterpret_cast<const uint4*>(r ? high : low);
    uint4* to = reinterpret_cast<uint4*>(static_cast<half*>(a.y) + (int64_t)(n + 8 * r) * a.w.k +
                                         chunk * 64 + t * 16);
    to[0] = from[0], to[1] = from[1];
  }
}

// --- INT8 rows

// Four int8 as two half2.
static __device__ __forceinline__ void expand8(u32& low, u32& high, u32 bytes) {
  const u32 biased = bytes ^ 0x80808080u, bias = 0x64806480u;  // 1152
  u32 a = __byte_perm(biased, 0x64646464u, 0x4140), b = __byte_perm(biased, 0x64646464u, 0x4342);
  const half2 offset = *reinterpret_cast<const half2*>(&bias);
  half2 x = __hsub2(*reinterpret_cast<half2*>(&a), offset);
  half2 y = __hsub2(*reinterpret_cast<half2*>(&b), offset);
  low = *reinterpret_cast<u32*>(&x), high = *reinterpret_cast<u32*>(&y);
}

// A warp does tiles of 16 rows over the whole of k.
KERNEL __launch_bounds__(256) int8_linear(const Int8Args a) {
  constexpr int UNROLL = 4;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int tiles = (a.n + 15) / 16, chunks = (a.k + 63) / 64, first = blockIdx.y * 8;
  const bool row_live = first + g < a.num_tokens;
  const half* x = static_cast<const half*>(a.x) + (first + g) * a.x_stride + t * 16;
  for (int tile = blockIdx.x * 8 + warp; tile < tiles; tile += gridDim.x * 8) {
    const int n0 = min(tile * 16 + g, a.n - 1), n1 = min(tile * 16 + g + 8, a.n - 1);
    const int8_t* weight = static_cast<const int8_t*>(a.weight) + t * 16;
    const int8_t *w0 = weight + (int64_t)n0 * a.k, *w1 = weight + (int64_t)n1 * a.k;
    float sum[2][4] = {};
    for (int base = 0; base < chunks; base += UNROLL) {
      uint4 q0[UNROLL], q1[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = (base + u) * 64;
        q0[u] = q1[u] = make_uint4(0, 0, 0, 0);
        if (k + t * 16 >= a.k) continue;
        q0[u] = load_stream(w0 + k), q1[u] = load_stream(w1 + k);
      }
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = (base + u) * 64;
        const Activations v = load_activations(x + k, nullptr, row_live && k + t * 16 < a.k);
        const u32 p0[4] = {q0[u].x, q0[u].y, q0[u].z, q0[u].w};
        const u32 p1[4] = {q1[u].x, q1[u].y, q1[u].z, q1[u].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          u32 w[4];
          expand8(w[0], w[2], p0[j]);
          expand8(w[1], w[3], p1[j]);
          mma(sum[j % 2], w, v.v[2 * j], v.v[2 * j + 1]);
        }
      }
    }
    const half* scales = static_cast<const half*>(a.scales);
    const half* bias = static_cast<const half*>(a.bias);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int n = tile * 16 + g + i / 2 * 8, token = first + 2 * t + i % 2;
      if (n >= a.n || token >= a.num_tokens) continue;
      float y = (sum[0][i] + sum[1][i]) * __half2float(scales[n]);
      if (bias != nullptr) y += __half2float(bias[n]);
      a.y[(int64_t)token * a.n + n] = y;
    }
  }
}

KERNEL __launch_bounds__(256) int8_embed(const EmbedArgs a) {
  const int64_t id = a.ids[blockIdx.x];
  const char4* row = reinterpret_cast<const char4*>(static_cast<const int8_t*>(a.weight) + id * a.n);
  const float scale = __half2float(static_cast<const half*>(a.scales)[id]);
  uint2* y = reinterpret_cast<uint2*>(static_cast<half*>(a.y) + (int64_t)blockIdx.x * a.n);
  for (int i = threadIdx.x; i < a.n / 4; i += blockDim.x) {
    const char4 q = row[i];
    y[i] = make_uint2(to_half2(q.x * scale, q.y * scale), to_half2(q.z * scale, q.w * scale));
  }
}
