// Linears of many rows on tensor cores, from packed weights: they are expanded in registers, so
// neither memory nor a workspace ever holds them in fp16.
#include "common.cuh"
#include "int4.cuh"

// A block does 128 weight rows by 16 N tokens: 4 x 2 warps, each 2 tiles of weights by N eights of
// tokens. Activations go through two buffers in shared memory, a chunk of 64 at a time.
// GATED: a warp's tiles are 16 gates and their 16 ups, so a block has 64 outputs.
template <int N, bool GATED>
static __device__ __forceinline__ void int4_gemm(const LinearArgs& a) {
  constexpr int TOKENS = 16 * N, STRIDE = GEMM_STRIDE, LOADS = TOKENS / 32;
  constexpr int OUT = GATED ? 64 : 128;
  static_assert(TOKENS * (OUT + 8) * sizeof(half) <= GEMM_SHARED_BYTES(TOKENS),
                "outputs use the buffers of the activations: change GEMM_SHARED_BYTES in args.h");
  extern __shared__ __align__(16) half shared[];
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp_n = threadIdx.x / 32 % 4, warp_t = threadIdx.x / 128;
  const int tiles = (a.w.n + 15) / 16, chunks = a.w.k / 64, first = blockIdx.y * TOKENS;
  const int tile0 = GATED ? blockIdx.x * 4 + warp_n : (blockIdx.x * 4 + warp_n) * 2;
  const int tile[2] = {min(tile0, tiles - 1), min(GATED ? tile0 + tiles / 2 : tile0 + 1, tiles - 1)};

  uint4 words[2], next_x[LOADS];
  half2 scales[2];
  u32 zeros[2];
  auto load_weights = [&](int chunk) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      words[i] = load_words(a.w, tile[i], chunk);
      const int meta = meta_index(a.w, tile[i], chunk / 2);
      scales[i] = __ldg(static_cast<const half2*>(a.w.scales) + meta);
      zeros[i] = __ldg(static_cast<const uint8_t*>(a.w.zeros) + meta);
    }
  };
  auto load_x = [&](int chunk) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int64_t token = first + threadIdx.x / 8 + i * 32;
      const half* x = static_cast<const half*>(a.x) + token * a.x_stride + chunk * 64;
      next_x[i] = make_uint4(0, 0, 0, 0);
      if (token < a.num_tokens) next_x[i] = reinterpret_cast<const uint4*>(x)[threadIdx.x % 8];
    }
  };
  auto store_x = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int token = buffer * TOKENS + threadIdx.x / 8 + i * 32;
      *reinterpret_cast<uint4*>(shared + token * STRIDE + threadIdx.x % 8 * 8) = next_x[i];
    }
  };

  grid_launch_next();
  load_weights(0);
  grid_wait();
  load_x(0);
  store_x(0);
  __syncthreads();
  float sum[2][N][4] = {};
  for (int chunk = 0; chunk < chunks; chunk++) {
    u32 w[2][4][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const u32 word[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
      const half2 scale[2] = {__low2half2(scales[i]), __high2half2(scales[i])};
      const Zeros z = zeros_of(zeros[i]);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        expand(w[i][j], word[j], z);
#pragma unroll
        for (int r = 0; r < 4; r++) {
          const half2 v = __hmul2(*reinterpret_cast<half2*>(&w[i][j][r]), scale[r % 2]);
          w[i][j][r] = *reinterpret_cast<const u32*>(&v);
        }
      }
    }
    const bool more = chunk + 1 < chunks;
    if (more) load_weights(chunk + 1);
    if (more) load_x(chunk + 1);
    const half* x = shared + (chunk % 2 * TOKENS + warp_t * 8 * N + g) * STRIDE + t * 16;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const uint4* from = reinterpret_cast<const uint4*>(x + n * 8 * STRIDE);
      const uint4 v0 = from[0], v1 = from[1];
      const u32 v[8] = {v0.x, v0.y, v0.z, v0.w, v1.x, v1.y, v1.z, v1.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        mma(sum[0][n], w[0][j], v[2 * j], v[2 * j + 1]);
        mma(sum[1][n], w[1][j], v[2 * j], v[2 * j + 1]);
      }
    }
    if (more) store_x((chunk + 1) % 2);
    __syncthreads();
  }

  // Through shared memory as [token][output], so that rows are written whole.
  const half* bias = static_cast<const half*>(a.bias);
#pragma unroll
  for (int i = 0; i < 4; i++) {  // i: row g or g + 8, token 2 t or 2 t + 1
    float b[2] = {0, 0};
#pragma unroll
    for (int p = 0; p < 2; p++) {
      const int row = tile[p] * 16 + g + i / 2 * 8;
      if (bias != nullptr && row < a.w.n) b[p] = __half2float(bias[row]);
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
      half* to = shared + (warp_t * 8 * N + n * 8 + 2 * t + i % 2) * (OUT + 8);
      const float y0 = sum[0][n][i] + b[0], y1 = sum[1][n][i] + b[1];
      const int row = g + i / 2 * 8;
      if (GATED) {
        to[warp_n * 16 + row] = __float2half_rn(y0 / (1 + __expf(-y0)) * y1);
      } else {
        to[warp_n * 32 + row] = __float2half_rn(y0);
        to[warp_n * 32 + 16 + row] = __float2half_rn(y1);
      }
    }
  }
  __syncthreads();
  const int width = GATED ? a.w.n / 2 : a.w.n;
  for (int i = threadIdx.x; i < TOKENS * OUT / 8; i += 256) {
    const int64_t token = first + i / (OUT / 8);
    const int n = blockIdx.x * OUT + i % (OUT / 8) * 8;
    if (token >= a.num_tokens || n >= width) continue;
    *reinterpret_cast<uint4*>(static_cast<half*>(a.y) + token * width + n) =
        *reinterpret_cast<const uint4*>(shared + i / (OUT / 8) * (OUT + 8) + i % (OUT / 8) * 8);
  }
}

KERNEL __launch_bounds__(256) int4_gemm_64(const LinearArgs a) { int4_gemm<4, false>(a); }
KERNEL __launch_bounds__(256) int4_gemm_128(const LinearArgs a) { int4_gemm<8, false>(a); }
KERNEL __launch_bounds__(256) int4_gemm_gated_64(const LinearArgs a) { int4_gemm<4, true>(a); }
KERNEL __launch_bounds__(256) int4_gemm_gated_128(const LinearArgs a) { int4_gemm<8, true>(a); }
