// Multi-head latent attention in its absorbed form, for the shape of DeepSeek's and Youtu's
// models: latent 512, rotary 64, key part 128 and value 128 a head, heads a multiple of 16.
//
//   mla_absorb   q W_UK into the latent space; also the step's rotary part and cache entries
//   mla_attend   16 heads fill a tensor core tile; the context is split over blocks
//   mla_output   adds the splits up and applies W_UV
//
// Both projections read the packed rows of kv_b: [H, 128 key rows | 128 value rows, 512].
#include "common.cuh"
#include "int4.cuh"
#include "rotary.cuh"

#define RANK 512
#define ROPE 64
#define WIDTH (RANK + ROPE)
#define NOPE 128
#define VALUE 128
#define ROW (WIDTH + 8)  // of a tile in shared memory: 8 more keep ldmatrix free of conflicts

// The rotary part of a row's queries, by a block.
static __device__ __forceinline__ void rotate_queries(const AbsorbArgs& a, int row) {
  constexpr int PAIRS = ROPE / 2, STEP = 256 / PAIRS;
  const AttendArgs& m = a.attend;
  const int pair = threadIdx.x % PAIRS, q_dim = NOPE + ROPE;
  const int p0 = a.rope.interleaved ? 2 * pair : pair;
  const int p1 = a.rope.interleaved ? p0 + 1 : p0 + PAIRS;
  float c = 1, s = 0;  // q is rotated already
  if (a.rope.latent != nullptr) {
    const Angles angles = angles_of(a.rope, m.first_row + row);
    c = angles.cos[pair], s = angles.sin[pair];
  }
  grid_wait();
  const half* q = static_cast<const half*>(m.q);
  half* latent = static_cast<half*>(m.q_latent);
  for (int base = threadIdx.x / PAIRS; base < m.num_heads; base += 2 * STEP) {
    half x[2], y[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {  // heads are a multiple of 16
      const int64_t head = (int64_t)(m.first_row + row) * m.num_heads + base + i * STEP;
      x[i] = q[head * q_dim + NOPE + p0], y[i] = q[head * q_dim + NOPE + p1];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      half* to = latent + ((int64_t)row * m.num_heads + base + i * STEP) * WIDTH + RANK;
      const float v = __half2float(x[i]), w = __half2float(y[i]);
      to[p0] = __float2half_rn(v * c - w * s), to[p1] = __float2half_rn(w * c + v * s);
    }
  }
}

// A row's cache entry, by a block: its latent normalised, its key part rotated.
static __device__ __forceinline__ void write_entry(const RopeArgs& a, int row, float* shared) {
  constexpr int PAIRS = ROPE / 2;
  half* entry = row_entry(a, row);
  const Angles angles = angles_of(a, row);
  const int pair = threadIdx.x % PAIRS, p0 = angles.interleaved ? 2 * pair : pair;
  const int p1 = angles.interleaved ? p0 + 1 : p0 + PAIRS;
  const float c = angles.cos[pair], s = angles.sin[pair];
  const float2 gain = to_float2(static_cast<const u32*>(a.norm)[threadIdx.x]);
  const half* latent = static_cast<const half*>(a.latent) + row * a.latent_stride;
  grid_wait();
  const float2 v = to_float2(reinterpret_cast<const u32*>(latent)[threadIdx.x]);
  const float x = __half2float(latent[RANK + p0]), y = __half2float(latent[RANK + p1]);
  const float scale = rsqrtf(block_sum<8>(v.x * v.x + v.y * v.y, shared) / RANK + a.eps);
  if (entry == nullptr) return;
  reinterpret_cast<u32*>(entry)[threadIdx.x] =
      to_half2(v.x * scale * gain.x, v.y * scale * gain.y);
  if (threadIdx.x >= PAIRS) return;
  entry[RANK + p0] = __float2half_rn(x * c - y * s);
  entry[RANK + p1] = __float2half_rn(y * c + x * s);
}

// Blocks: (head, chunk of the latent), then two a row for the rest; eight rows along y.
KERNEL __launch_bounds__(256) mla_absorb(const AbsorbArgs a) {
  __shared__ __align__(16) float partial[8][8][68];
  const AttendArgs& m = a.attend;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int first = blockIdx.y * 8, projections = m.num_heads * (RANK / 64);
  const int q_dim = NOPE + ROPE;
  grid_launch_next();

  if (blockIdx.x >= projections) {
    const int rest = blockIdx.x - projections, row = first + rest / 2;
    if (row < m.num_rows && rest % 2 == 0) {
      rotate_queries(a, row);
    } else if (row < m.num_rows && a.rope.latent != nullptr) {
      write_entry(a.rope, m.first_row + row, &partial[0][0][0]);
    } else {
      grid_wait();
    }
    return;
  }

  // A warp multiplies 16 of the key rows. W is the right operand here, so its fragments are
  // transposed in registers.
  const int head = blockIdx.x / (RANK / 64), chunk = blockIdx.x % (RANK / 64);
  const int tile = head * ((NOPE + VALUE) / 16) + warp;
  const uint4 words = load_words(m.kv_b, tile, chunk);
  const int meta = meta_index(m.kv_b, tile, chunk * 64 / GROUP);
  const half2 scale = static_cast<const half2*>(m.kv_b.scales)[meta];
  const Zeros z = zeros_of(static_cast<const uint8_t*>(m.kv_b.zeros)[meta]);
  const u32 word[4] = {words.x, words.y, words.z, words.w};
  u32 w[4][4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    expand(w[j], word[j], z);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const half2 s = i % 2 ? __high2half2(scale) : __low2half2(scale);
      const half2 scaled = __hmul2(*reinterpret_cast<half2*>(&w[j][i]), s);
      w[j][i] = transpose(*reinterpret_cast<const u32*>(&scaled));
    }
  }
  grid_wait();
  const half* q = static_cast<const half*>(m.q) + (int64_t)m.first_row * m.num_heads * q_dim;
  const half* row = q + ((int64_t)(first + g) * m.num_heads + head) * q_dim + warp * 16 + 2 * t;
  u32 left[4] = {0, 0, 0, 0};
  if (first + g < m.num_rows) {
    left[0] = *reinterpret_cast<const u32*>(row);
    left[2] = *reinterpret_cast<const u32*>(row + 8);
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    float c0[4] = {0, 0, 0, 0}, c1[4] = {0, 0, 0, 0};
    mma(c0, left, w[j][0], w[j][1]);
    mma(c1, left, w[j][2], w[j][3]);
    *reinterpret_cast<float4*>(&partial[warp][g][t * 16 + j * 4]) =
        make_float4(c0[0], c0[1], c1[0], c1[1]);
  }
  __syncthreads();
  const int out_row = first + warp, r = threadIdx.x % 32 * 2;
  if (out_row >= m.num_rows) return;
  float2 sum = make_float2(0, 0);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    sum.x += partial[i][warp][r], sum.y += partial[i][warp][r + 1];
  }
  half* to = static_cast<half*>(m.q_latent) +
             ((int64_t)out_row * m.num_heads + head) * WIDTH + chunk * 64 + r;
  *reinterpret_cast<u32*>(to) = to_half2(sum.x, sum.y);
}

struct AttendShared {
  half keys[SPLIT_TOKENS][ROW];
  half queries[16][ROW];
  float scores[2][16][36];
  half weights[16][40];
  float correction[16];
};
static_assert(sizeof(AttendShared) == ATTEND_SHARED_BYTES, "change ATTEND_SHARED_BYTES in args.h");

// Blocks: (split, row, 16 heads). Eight warps: scores by 4 x 8 tokens and 2 halves of the
// width; weights by 2 heads; sums by 64 values of the latent.
KERNEL __launch_bounds__(256) mla_attend(const AttendArgs a) {
  extern __shared__ __align__(16) char raw[];
  AttendShared& sh = *reinterpret_cast<AttendShared*>(raw);
  const int split = blockIdx.x, row = blockIdx.y, head0 = blockIdx.z * 16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  grid_launch_next();
  // In a step of single rows all but the newest entry was there before the step began.
  const bool ahead = a.step.num_seqs == a.step.num_tokens;
  if (!ahead) grid_wait();
  const Row where = row_of(a.step, a.first_row + row);
  const int per = tokens_per_split(where.len, a.splits);
  const int begin = split * per, end = min(where.len, begin + per);

  constexpr int VECTORS = WIDTH / 8, LOADS = SPLIT_TOKENS * VECTORS / 256;
  uint4 next[LOADS];
  const half* entries = nullptr;
  auto load = [&](int from, int to) {  // vectors of the tile at `entries`
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int at = threadIdx.x + i * 256;
      if (at >= from && at < to) next[i] = reinterpret_cast<const uint4*>(entries)[at];
    }
  };
#pragma unroll
  for (int i = 0; i < LOADS; i++) next[i] = make_uint4(0, 0, 0, 0);
  if (begin < end) {
    entries = entry_at(a.step, where.sequence, begin, a.layer);
    if (ahead) load(0, (min(end, where.len - 1) - begin) * VECTORS);
  }
  grid_wait();
  if (begin >= end) return;
  load(ahead ? (min(end, where.len - 1) - begin) * VECTORS : 0, (end - begin) * VECTORS);

  const uint4* q = reinterpret_cast<const uint4*>(static_cast<const half*>(a.q_latent) +
                                                  ((int64_t)row * a.num_heads + head0) * WIDTH);
  constexpr int QUERY_LOADS = (16 * VECTORS + 255) / 256;
  uint4 query[QUERY_LOADS];  // all asked for before the first is stored
#pragma unroll
  for (int i = 0; i < QUERY_LOADS; i++) {
    const int at = threadIdx.x + i * 256;
    if (at < 16 * VECTORS) query[i] = q[at];
  }
#pragma unroll
  for (int i = 0; i < QUERY_LOADS; i++) {
    const int at = threadIdx.x + i * 256;
    if (at < 16 * VECTORS)
      *reinterpret_cast<uint4*>(&sh.queries[at / VECTORS][at % VECTORS * 8]) = query[i];
  }

  float top[2] = {-INFINITY, -INFINITY}, denominator[2] = {0, 0};  // of heads 2 warp, + 1
  float sum[8][4] = {};
  for (int token = begin; token < end; token += SPLIT_TOKENS) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int at = threadIdx.x + i * 256;
      *reinterpret_cast<uint4*>(&sh.keys[at / VECTORS][at % VECTORS * 8]) = next[i];
      next[i] = make_uint4(0, 0, 0, 0);  // what lies beyond the end must be a number
    }
    __syncthreads();
    const int following = token + SPLIT_TOKENS;
    if (following < end) {  // a tile lies within one page
      entries += SPLIT_TOKENS * WIDTH;
      if (following % YOUTU_PAGE_SIZE == 0)
        entries = entry_at(a.step, where.sequence, following, a.layer);
      load(0, (end - following) * VECTORS);
    }

    const int tokens8 = warp % 4, part = warp / 4;
    float score[2][4] = {};
#pragma unroll
    for (int i = 0; i < WIDTH / 2 / 32; i++) {
      const int k = part * (WIDTH / 2) + i * 32;
      u32 a0[4], a1[4], b[4];
      load_matrices(a0, &sh.queries[lane % 16][k + lane / 16 * 8]);
      load_matrices(a1, &sh.queries[lane % 16][k + 16 + lane / 16 * 8]);
      load_matrices(b, &sh.keys[tokens8 * 8 + lane % 8][k + lane / 8 * 8]);
      mma(score[0], a0, b[0], b[1]);
      mma(score[1], a1, b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
      sh.scores[part][g + i / 2 * 8][tokens8 * 8 + 2 * t + i % 2] = score[0][i] + score[1][i];
    __syncthreads();

#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int head = 2 * warp + i;
      float s = (sh.scores[0][head][lane] + sh.scores[1][head][lane]) * a.scale;
      if (token + lane >= end) s = -INFINITY;
      const float new_top = fmaxf(top[i], warp_max(s));
      const float correction = exp2f(top[i] - new_top), weight = exp2f(s - new_top);
      denominator[i] = denominator[i] * correction + warp_sum(weight);
      top[i] = new_top;
      sh.weights[head][lane] = __float2half_rn(weight);
      if (lane == 0) sh.correction[head] = correction;
    }
    __syncthreads();

    const float c0 = sh.correction[g], c1 = sh.correction[g + 8];
#pragma unroll
    for (int n = 0; n < 8; n++) sum[n][0] *= c0, sum[n][1] *= c0, sum[n][2] *= c1, sum[n][3] *= c1;
#pragma unroll
    for (int k = 0; k < SPLIT_TOKENS; k += 16) {
      u32 w[4];
      load_matrices(w, &sh.weights[lane % 16][k + lane / 16 * 8]);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        u32 v[4];
        load_matrices_transposed(v, &sh.keys[k + lane % 16][warp * 64 + n * 8 + lane / 16 * 8]);
        mma(sum[n], w, v[0], v[1]);
        mma(sum[n + 1], w, v[2], v[3]);
      }
    }
    __syncthreads();
  }

  const int64_t base = ((int64_t)row * a.splits + split) * a.num_heads + head0;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (lane != 0) continue;
    sh.correction[2 * warp + i] = 1 / denominator[i];
    a.lse[base + 2 * warp + i] = top[i] + log2f(denominator[i]);
  }
  __syncthreads();
  const float f0 = sh.correction[g], f1 = sh.correction[g + 8];
  half* out = static_cast<half*>(a.partial) + base * RANK + warp * 64 + 2 * t;
#pragma unroll
  for (int n = 0; n < 8; n++) {
    *reinterpret_cast<u32*>(out + g * RANK + n * 8) = to_half2(sum[n][0] * f0, sum[n][1] * f0);
    *reinterpret_cast<u32*>(out + (g + 8) * RANK + n * 8) =
        to_half2(sum[n][2] * f1, sum[n][3] * f1);
  }
}

// Blocks: (head, 16 values of it), eight rows along y. A warp does a chunk of the latent.
KERNEL __launch_bounds__(256) mla_output(const AttendArgs a) {
  __shared__ __align__(16) float sums[4][RANK];  // also the product's partial sums
  __shared__ __align__(16) half mixed[8][RANK];
  __shared__ float weights[8][MAX_SPLITS];
  __shared__ int used_of[8];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.x / (VALUE / 16), sixteenth = blockIdx.x % (VALUE / 16);
  const int first = blockIdx.y * 8, rows = min(8, a.num_rows - first);
  const int tile = head * ((NOPE + VALUE) / 16) + NOPE / 16 + sixteenth;
  const uint4 words = load_words(a.kv_b, tile, warp);
  const int meta = meta_index(a.kv_b, tile, warp * 64 / GROUP);
  const u32 scale = static_cast<const u32*>(a.kv_b.scales)[meta];
  const Zeros z = zeros_of(static_cast<const uint8_t*>(a.kv_b.zeros)[meta]);
  grid_launch_next();
  const int len = warp < rows ? row_of(a.step, a.first_row + first + warp).len : 0;
  const u32 word[4] = {words.x, words.y, words.z, words.w};
  u32 w[4][4];
#pragma unroll
  for (int j = 0; j < 4; j++) expand(w[j], word[j], z);
  grid_wait();

  // Add the splits up: 64 threads hold a row's latent; with few rows more of them share one.
  const int column = threadIdx.x % 64 * 8, team = threadIdx.x / 64;
  const int share = rows == 1 ? 4 : rows == 2 ? 2 : 1, at_once = 4 / share;
  const half* sources = static_cast<const half*>(a.partial) + head * RANK + column;
  uint4 v[8];
  auto load = [&](int r, int base) {  // all eight, also those beyond the last: nothing uses them
    const half* from = sources + (int64_t)(first + r) * a.splits * a.num_heads * RANK;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int64_t split = min(base + i * share, a.splits - 1);
      v[i] = *reinterpret_cast<const uint4*>(from + split * a.num_heads * RANK);
    }
  };
  if (team / share < rows) load(team / share, team % share);

  // Meanwhile the share of each split: warp w does row w.
  if (warp < rows) {
    const int row = first + warp;
    const int per = tokens_per_split(len, a.splits), used = len > 0 ? (len + per - 1) / per : 0;
    const float* lse = a.lse + (int64_t)row * a.splits * a.num_heads + head;
    float value[4], top = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int split = lane + 32 * i;
      value[i] = split < used ? lse[split * a.num_heads] : -INFINITY;
      top = fmaxf(top, value[i]);
    }
    top = used ? warp_max(top) : 0;
#pragma unroll
    for (int i = 0; i < 4; i++) total += value[i] = exp2f(value[i] - top);
    total = used ? warp_sum(total) : 1;
#pragma unroll
    for (int i = 0; i < 4; i++) weights[warp][lane + 32 * i] = value[i] / total;
    if (lane == 0) used_of[warp] = used;
  }
  __syncthreads();

  for (int r = team / share; r < rows; r += at_once) {
    float sum[8] = {};
    const int used = used_of[r];
    for (int base = team % share; base < used; base += 8 * share) {
      if (r != team / share || base != team % share) load(r, base);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int split = base + i * share;
        if (split >= used) continue;  // what was read there may be anything
        const float weight = weights[r][split];
        const u32 p[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 f = to_float2(p[j]);
          sum[2 * j] += weight * f.x, sum[2 * j + 1] += weight * f.y;
        }
      }
    }
    if (share > 1) {
      *reinterpret_cast<float4*>(&sums[team][column]) =
          make_float4(sum[0], sum[1], sum[2], sum[3]);
      *reinterpret_cast<float4*>(&sums[team][column + 4]) =
          make_float4(sum[4], sum[5], sum[6], sum[7]);
    } else {
      *reinterpret_cast<uint4*>(&mixed[r][column]) =
          make_uint4(to_half2(sum[0], sum[1]), to_half2(sum[2], sum[3]), to_half2(sum[4], sum[5]),
                     to_half2(sum[6], sum[7]));
    }
  }
  __syncthreads();
  if (share > 1) {
    for (int i = threadIdx.x; i < rows * RANK; i += 256) {
      float sum = 0;
      for (int j = 0; j < share; j++) sum += sums[i / RANK * share + j][i % RANK];
      mixed[i / RANK][i % RANK] = __float2half_rn(sum);
    }
    __syncthreads();
  }

  u32 x[8] = {};
  if (g < rows) {
    const uint4* from = reinterpret_cast<const uint4*>(&mixed[g][warp * 64 + t * 16]);
    const uint4 x0 = from[0], x1 = from[1];
    x[0] = x0.x, x[1] = x0.y, x[2] = x0.z, x[3] = x0.w;
    x[4] = x1.x, x[5] = x1.y, x[6] = x1.z, x[7] = x1.w;
  }
  float c[4] = {0, 0, 0, 0};
#pragma unroll
  for (int j = 0; j < 4; j++) mma(c, w[j], x[2 * j], x[2 * j + 1]);
  const float2 s = to_float2(scale);
  float2* partial = reinterpret_cast<float2*>(sums);  // [warp][16 values][4 pairs of rows]
  partial[(warp * 16 + g) * 4 + t] = make_float2(c[0] * s.x, c[1] * s.x);
  partial[(warp * 16 + g + 8) * 4 + t] = make_float2(c[2] * s.y, c[3] * s.y);
  __syncthreads();
  if (threadIdx.x >= 128 || threadIdx.x % 8 >= rows) return;
  float y = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) y += reinterpret_cast<const float*>(partial)[i * 128 + threadIdx.x];
  const int64_t row = a.first_row + first + threadIdx.x % 8;
  static_cast<half*>(a.out)[(row * a.num_heads + head) * VALUE + sixteenth * 16 +
                            threadIdx.x / 8] = __float2half_rn(y);
}
