// Grouped-query attention of few rows: the context is split over blocks, then added up.
#include "common.cuh"

// Blocks: (split, row, up to HEADS query heads of one key/value head). LANES lanes read a token,
// 16 bytes each, so a warp has 32 / LANES tokens under way.
template <int LANES, int HEADS>
static __device__ __forceinline__ void gqa_attend(const AttendArgs& a) {
  grid_launch_next();
  grid_wait();
  constexpr int WARPS = 4, TEAMS = WARPS * 32 / LANES;
  __shared__ float tops[TEAMS][HEADS], sums[TEAMS][HEADS];
  __shared__ __align__(16) float mixed[WARPS][HEADS][LANES * 8];
  const int split = blockIdx.x, row = blockIdx.y;
  const int group = a.num_heads / a.num_kv_heads, parts = (group + HEADS - 1) / HEADS;
  const int kv_head = blockIdx.z / parts, part = blockIdx.z % parts;
  const int head0 = kv_head * group + part * HEADS, heads = min(HEADS, group - part * HEADS);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
  const bool live = lane * 8 < a.head_dim;
  const Row where = row_of(a.step, a.first_row + row);
  const int per = tokens_per_split(where.len, a.splits);
  const int begin = split * per, end = min(where.len, begin + per);
  if (begin >= end) return;

  float q[HEADS][8], sum[HEADS][8], top[HEADS], denominator[HEADS];
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    uint4 v = make_uint4(0, 0, 0, 0);
    const half* from = static_cast<const half*>(a.q) + (a.first_row + row) * a.q_stride +
                       (head0 + h) * a.head_dim + lane * 8;
    if (live && h < heads) v = *reinterpret_cast<const uint4*>(from);
    const u32 p[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 f = to_float2(p[i]);
      q[h][2 * i] = f.x * a.scale, q[h][2 * i + 1] = f.y * a.scale;
      sum[h][2 * i] = sum[h][2 * i + 1] = 0;
    }
    top[h] = -INFINITY, denominator[h] = 0;
  }
  // All lanes of a warp take part in the shuffles, so they stay together; tokens beyond the
  // end count nothing.
  for (int base = begin; base < end; base += TEAMS) {
    const int token = base + team;
    uint4 k4 = make_uint4(0, 0, 0, 0), v4 = k4;
    if (token < end && live) {
      const half* entry = entry_at(a.step, where.sequence, token, a.layer) +
                          kv_head * a.head_dim + lane * 8;
      k4 = *reinterpret_cast<const uint4*>(entry);
      v4 = *reinterpret_cast<const uint4*>(entry + a.num_kv_heads * a.head_dim);
    }
    const u32 kp[4] = {k4.x, k4.y, k4.z, k4.w}, vp[4] = {v4.x, v4.y, v4.z, v4.w};
    float k[8], v[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 f = to_float2(kp[i]), e = to_float2(vp[i]);
      k[2 * i] = f.x, k[2 * i + 1] = f.y, v[2 * i] = e.x, v[2 * i + 1] = e.y;
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float score = 0;
#pragma unroll
      for (int i = 0; i < 8; i++) score += q[h][i] * k[i];
#pragma unroll
      for (int o = LANES / 2; o; o /= 2) score += __shfl_xor_sync(~0u, score, o);
      if (token >= end) continue;
      const float new_top = fmaxf(top[h], score);
      const float correction = exp2f(top[h] - new_top), weight = exp2f(score - new_top);
      top[h] = new_top;
      denominator[h] = denominator[h] * correction + weight;
#pragma unroll
      for (int i = 0; i < 8; i++) sum[h][i] = sum[h][i] * correction + weight * v[i];
    }
  }

  if (lane == 0) {
#pragma unroll
    for (int h = 0; h < HEADS; h++) tops[team][h] = top[h], sums[team][h] = denominator[h];
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    float all = -INFINITY;
    for (int i = 0; i < TEAMS; i++) all = fmaxf(all, tops[i][h]);
    const float correction = top[h] == -INFINITY ? 0 : exp2f(top[h] - all);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float v = sum[h][i] * correction;
#pragma unroll
      for (int o = LANES; o < 32; o *= 2) v += __shfl_xor_sync(~0u, v, o);
      if (threadIdx.x % 32 < LANES) mixed[warp][h][lane * 8 + i] = v;
    }
  }
  __syncthreads();
  const int64_t base = ((int64_t)row * a.splits + split) * a.num_heads + head0;
  for (int i = threadIdx.x; i < heads * a.head_dim; i += WARPS * 32) {
    const int h = i / a.head_dim, d = i % a.head_dim;
    float all = -INFINITY, total = 0, v = 0;
    for (int j = 0; j < TEAMS; j++) all = fmaxf(all, tops[j][h]);
    for (int j = 0; j < TEAMS; j++)
      if (tops[j][h] != -INFINITY) total += sums[j][h] * exp2f(tops[j][h] - all);
#pragma unroll
    for (int w = 0; w < WARPS; w++) v += mixed[w][h][d];
    static_cast<half*>(a.partial)[(base + h) * a.head_dim + d] = __float2half_rn(v / total);
    if (d == 0) a.lse[base + h] = all + log2f(total);
  }
}

KERNEL __launch_bounds__(128) gqa_attend_64_1(const AttendArgs a) { gqa_attend<8, 1>(a); }
KERNEL __launch_bounds__(128) gqa_attend_64_8(const AttendArgs a) { gqa_attend<8, 8>(a); }
KERNEL __launch_bounds__(128) gqa_attend_128_1(const AttendArgs a) { gqa_attend<16, 1>(a); }
KERNEL __launch_bounds__(128) gqa_attend_128_8(const AttendArgs a) { gqa_attend<16, 8>(a); }
KERNEL __launch_bounds__(128) gqa_attend_256_1(const AttendArgs a) { gqa_attend<32, 1>(a); }
KERNEL __launch_bounds__(128) gqa_attend_256_8(const AttendArgs a) { gqa_attend<32, 8>(a); }

// Blocks: (head, row).
KERNEL __launch_bounds__(128) gqa_combine(const AttendArgs a) {
  grid_launch_next();
  grid_wait();
  __shared__ float weights[MAX_SPLITS];
  const int head = blockIdx.x, row = blockIdx.y;
  const int len = row_of(a.step, a.first_row + row).len;
  const int per = tokens_per_split(len, a.splits), used = len > 0 ? (len + per - 1) / per : 0;
  const int64_t base = (int64_t)row * a.splits * a.num_heads + head;
  float top = -INFINITY, total = 0;
  for (int i = 0; i < used; i++) top = fmaxf(top, a.lse[base + i * a.num_heads]);
  for (int i = 0; i < used; i++) total += exp2f(a.lse[base + i * a.num_heads] - top);
  if (threadIdx.x < used)
    weights[threadIdx.x] = exp2f(a.lse[base + threadIdx.x * a.num_heads] - top) / total;
  __syncthreads();
  for (int d = threadIdx.x; d < a.head_dim; d += 128) {
    const half* from = static_cast<const half*>(a.partial) + base * a.head_dim + d;
    float sum = 0;
    for (int base = 0; base < used; base += 8) {
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {  // all eight under way, the last ones too
        const int at = min(base + i, used - 1);
        v[i] = __half2float(from[(int64_t)at * a.num_heads * a.head_dim]);
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (base + i < used) sum += weights[base + i] * v[i];
    }
    static_cast<half*>(a.out)[((int64_t)(a.first_row + row) * a.num_heads + head) * a.head_dim +
                              d] = __float2half_rn(sum);
  }
}
