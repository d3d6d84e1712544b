// Linears of few rows, limited by the reading of weights. Tensor cores do up to 8 rows at the cost
// of one: a tile of 16 weight rows is the left operand, the activations are the right one.
#include "common.cuh"
#include "int4.cuh"

// A lane's 16 activations of a chunk: k = 16 t .. of row g.
static __device__ __forceinline__ void load_activations(u32 (&v)[8], const half* from, bool live) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint4 q = make_uint4(0, 0, 0, 0);
    if (live) q = reinterpret_cast<const uint4*>(from)[i];
    v[4 * i] = q.x, v[4 * i + 1] = q.y, v[4 * i + 2] = q.z, v[4 * i + 3] = q.w;
  }
}

// A lane's part of a group of a tile: two chunks.
struct Weights {
  uint4 words[2];
  u32 scales, zeros;
};

static __device__ __forceinline__ void load_weights(Weights& to, const Int4& w, int tile,
                                                    int group) {
  to.words[0] = load_words(w, tile, 2 * group);
  to.words[1] = load_words(w, tile, 2 * group + 1);
  const int meta = meta_index(w, tile, group);
  to.scales = __ldg(static_cast<const u32*>(w.scales) + meta);
  to.zeros = __ldg(static_cast<const uint8_t*>(w.zeros) + meta);
}

// total += a group of the tile times v.
static __device__ __forceinline__ void multiply(float (&total)[4], const Weights& weights,
                                                const u32 (&v)[2][8]) {
  const Zeros z = zeros_of(weights.zeros);
  float sum[2][4] = {};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint4 q = weights.words[i];
    const u32 word[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 w[4];
      expand(w, word[j], z);
      mma(sum[i], w, v[i][2 * j], v[i][2 * j + 1]);
    }
  }
  const float2 s = to_float2(weights.scales);
  total[0] += s.x * (sum[0][0] + sum[1][0]), total[1] += s.x * (sum[0][1] + sum[1][1]);
  total[2] += s.y * (sum[0][2] + sum[1][2]), total[3] += s.y * (sum[0][3] + sum[1][3]);
}

// staged [rows][k + 8] = rms_norm(x + delta) * gains of rows `first` .., by a block of 8 warps, SHARE
// of which do a row.
template <int SHARE>
static __device__ __forceinline__ void stage_rows(half* staged, const half* gains,
                                                  const LinearArgs& a, int first, int rows) {
  __shared__ float squares[8];
  const int warp = threadIdx.x / 32, r = warp / SHARE, stride = STAGE_STRIDE(a.w.k);
  const int lane = warp % SHARE * 32 + threadIdx.x % 32, vectors = a.w.k / 8;
  const int64_t row = first + r;
  const uint4* x = reinterpret_cast<const uint4*>(static_cast<const half*>(a.x) + row * a.x_stride);
  const uint4* delta =
      reinterpret_cast<const uint4*>(static_cast<const half*>(a.delta) + row * a.w.k);
  uint4* out = reinterpret_cast<uint4*>(static_cast<half*>(a.x_out) + row * a.w.k);
  uint4* to = reinterpret_cast<uint4*>(staged + r * stride);
  const int count = r < rows ? vectors : 0;
  float sum = 0;
  for (int base = lane; base < count; base += 2 * 32 * SHARE) {
    uint4 v[2], d[2];  // two under way: more would cost the registers that hold weights
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int at = base + i * 32 * SHARE;
      v[i] = d[i] = make_uint4(0, 0, 0, 0);
      if (at < count) v[i] = x[at];
      if (at < count && a.delta != nullptr) d[i] = delta[at];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int at = base + i * 32 * SHARE;
      if (at >= count) continue;
      if (a.delta != nullptr) {
        v[i] = make_uint4(add2(v[i].x, d[i].x), add2(v[i].y, d[i].y), add2(v[i].z, d[i].z),
                          add2(v[i].w, d[i].w));
        if (blockIdx.x == 0) out[at] = v[i];
      }
      const u32 p[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 f = to_float2(p[j]);
        sum += f.x * f.x + f.y * f.y;
      }
      to[at] = v[i];  // this thread reads it below
    }
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) squares[warp] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int i = 0; i < SHARE; i++) sum += squares[r * SHARE + i];
  const float scale = rsqrtf(sum / a.w.k + a.eps);
  for (int at = lane; at < count; at += 32 * SHARE) {
    const uint4 v = to[at], n = reinterpret_cast<const uint4*>(gains)[at];
    const u32 p[4] = {v.x, v.y, v.z, v.w}, gain[4] = {n.x, n.y, n.z, n.w};
    u32 y[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 f = to_float2(p[i]), w = to_float2(gain[i]);
      y[i] = to_half2(f.x * scale * w.x, f.y * scale * w.y);
    }
    to[at] = make_uint4(y[0], y[1], y[2], y[3]);
  }
  __syncthreads();
}

// y = x W^T + bias for 8 rows of x; blockIdx.x is a tile, blockIdx.y eight rows. WARPS warps share
// k, UNROLL groups each in flight.
// NORM: x is rms_norm(x + delta) * norm. GATED: y = silu(first half) * second half.
template <int WARPS, int UNROLL, bool NORM, bool GATED>
static __device__ __forceinline__ void int4_linear(const LinearArgs& a) {
  constexpr int PARTS = GATED ? 2 : 1;
  extern __shared__ __align__(16) half staged[];
  __shared__ float2 partial[PARTS * WARPS][16][4];
  const int warp = threadIdx.x / 32 % WARPS, part = threadIdx.x / 32 / WARPS;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int tile = blockIdx.x + part * gridDim.x, groups = a.w.k / GROUP;
  const int first = blockIdx.y * 8, rows = min(8, a.num_tokens - first);
  const half* x = static_cast<const half*>(a.x) + (first + g) * a.x_stride + t * 16;
  if (NORM) x = staged + g * STAGE_STRIDE(a.w.k) + t * 16;

  grid_launch_next();
  Weights weights[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {  // under way while the activations are awaited
    const int group = warp + u * WARPS;
    if (group < groups) load_weights(weights[u], a.w, tile, group);
  }
  half* gains = staged + rows * STAGE_STRIDE(a.w.k);
  if (NORM) {
    for (int i = threadIdx.x; i < a.w.k / 8; i += 256)
      reinterpret_cast<uint4*>(gains)[i] = __ldg(static_cast<const uint4*>(a.norm) + i);
  }
  grid_wait();
  if (NORM) {
    if (rows == 1) {
      stage_rows<8>(staged, gains, a, first, rows);
    } else if (rows == 2) {
      stage_rows<4>(staged, gains, a, first, rows);
    } else if (rows <= 4) {
      stage_rows<2>(staged, gains, a, first, rows);
    } else {
      stage_rows<1>(staged, gains, a, first, rows);
    }
  }

  float total[4] = {0, 0, 0, 0};
  for (int base = warp; base < groups; base += WARPS * UNROLL) {
    // From shared memory activations come when they are needed, else all are asked for at once.
    u32 v[NORM ? 1 : UNROLL][2][8];
    auto load_group = [&](u32(&to)[2][8], int group) {
#pragma unroll
      for (int i = 0; i < 2; i++) load_activations(to[i], x + group * GROUP + i * 64, g < rows);
    };
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int group = base + u * WARPS;
      if (!NORM && group < groups) load_group(v[u], group);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int group = base + u * WARPS;
      if (group >= groups) continue;
      if (NORM) load_group(v[0], group);
      multiply(total, weights[u], v[NORM ? 0 : u]);
      if (group + WARPS * UNROLL < groups)
        load_weights(weights[u], a.w, tile, group + WARPS * UNROLL);
    }
  }
  partial[part * WARPS + warp][g][t] = make_float2(total[0], total[1]);
  partial[part * WARPS + warp][g + 8][t] = make_float2(total[2], total[3]);
  __syncthreads();

  if (threadIdx.x >= 128) return;
  const int out_row = threadIdx.x / 8, column = threadIdx.x % 8;
  float sums[PARTS];
#pragma unroll
  for (int p = 0; p < PARTS; p++) {
    sums[p] = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
      sums[p] += reinterpret_cast<const float*>(partial[p * WARPS + i])[threadIdx.x];
    const int n = (blockIdx.x + p * gridDim.x) * 16 + out_row;
    if (a.bias != nullptr && n < a.w.n)
      sums[p] += __half2float(static_cast<const half*>(a.bias)[n]);
  }
  const int width = GATED ? a.w.n / 2 : a.w.n, n = blockIdx.x * 16 + out_row;
  if (column >= rows || n >= width) return;
  float y = sums[0];
  if (GATED) y = y / (1 + __expf(-y)) * sums[PARTS - 1];
  static_cast<half*>(a.y)[(int64_t)(first + column) * width + n] = __float2half_rn(y);
}

// Long k (down projections) takes more warps, so that a block still reads it in one go.
KERNEL __launch_bounds__(256) int4_linear_short(const LinearArgs a) {
  int4_linear<8, 2, false, false>(a);
}
KERNEL __launch_bounds__(512) int4_linear_long(const LinearArgs a) {
  int4_linear<16, 3, false, false>(a);
}
KERNEL __launch_bounds__(256) int4_linear_norm(const LinearArgs a) {
  int4_linear<8, 2, true, false>(a);
}
// Four blocks fit on an SM: a large MLP's are then all there at once, the next kernel's beside them.
KERNEL __launch_bounds__(256, 4) int4_linear_norm_gated(const LinearArgs a) {
  int4_linear<4, 2, true, true>(a);
}

// --- packing

static __device__ __forceinline__ u32 nibble_of(const int32_t* words, int64_t row, int n,
                                                int column) {
  const int shift = column % 8 / 2 * 4 + column % 2 * 16;  // AutoAWQ's order, ops/awq.py
  return (u32)words[row * (n / 8) + column / 8] >> shift & 15;
}

// A block of 32 threads per (chunk, tile).
KERNEL int4_pack(const PackArgs a) {
  grid_wait();
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

  const int groups = w.k / GROUP;
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

// A lane's bytes of rows g and g + 8 of a tile.
template <int UNROLL>
struct Rows8 {
  uint4 low[UNROLL], high[UNROLL];
};

template <int UNROLL>
static __device__ __forceinline__ void load_rows8(Rows8<UNROLL>& to, const Int8Args& a, int tile,
                                                  int chunk) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int n0 = min(tile * 16 + g, a.n - 1), n1 = min(tile * 16 + g + 8, a.n - 1);
  const int8_t* weight = static_cast<const int8_t*>(a.weight) + t * 16;
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const int k = (chunk + u) * 64;
    to.low[u] = to.high[u] = make_uint4(0, 0, 0, 0);
    if (k + t * 16 >= a.k) continue;
    to.low[u] = load_stream(weight + (int64_t)n0 * a.k + k);
    to.high[u] = load_stream(weight + (int64_t)n1 * a.k + k);
  }
}

// A warp does tiles of 16 rows over the whole of k, the next chunks under way all the time.
KERNEL __launch_bounds__(256) int8_linear(const Int8Args a) {
  constexpr int UNROLL = 4;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int tiles = (a.n + 15) / 16, chunks = (a.k + 63) / 64, first = blockIdx.y * 8;
  const bool row_live = first + g < a.num_tokens;
  const half* x = static_cast<const half*>(a.x) + (first + g) * a.x_stride + t * 16;
  const int step = gridDim.x * 8;
  int tile = blockIdx.x * 8 + warp;
  Rows8<UNROLL> next;
  grid_launch_next();
  if (tile < tiles) load_rows8(next, a, tile, 0);
  grid_wait();
  for (; tile < tiles; tile += step) {
    float sum[2][4] = {};
    for (int base = 0; base < chunks; base += UNROLL) {
      const Rows8<UNROLL> now = next;
      const bool last = base + UNROLL >= chunks;
      if (!last || tile + step < tiles)
        load_rows8(next, a, last ? tile + step : tile, last ? 0 : base + UNROLL);
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = (base + u) * 64;
        u32 v[8];
        load_activations(v, x + k, row_live && k + t * 16 < a.k);
        const u32 p0[4] = {now.low[u].x, now.low[u].y, now.low[u].z, now.low[u].w};
        const u32 p1[4] = {now.high[u].x, now.high[u].y, now.high[u].z, now.high[u].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          u32 w[4];
          expand8(w[0], w[2], p0[j]);
          expand8(w[1], w[3], p1[j]);
          mma(sum[j % 2], w, v[2 * j], v[2 * j + 1]);
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
  grid_launch_next();
  grid_wait();
  const int64_t id = a.ids[blockIdx.x];
  const char4* row = reinterpret_cast<const char4*>(static_cast<const int8_t*>(a.weight) + id * a.n);
  const float scale = __half2float(static_cast<const half*>(a.scales)[id]);
  uint2* y = reinterpret_cast<uint2*>(static_cast<half*>(a.y) + (int64_t)blockIdx.x * a.n);
  for (int i = threadIdx.x; i < a.n / 4; i += blockDim.x) {
    const char4 q = row[i];
    y[i] = make_uint2(to_half2(q.x * scale, q.y * scale), to_half2(q.z * scale, q.w * scale));
  }
}
