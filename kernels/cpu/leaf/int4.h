// INT4 linears over simd/*.h: int8 activations, exact integer sums over 32 channels, float
// beyond. The result of a row does not depend on the rows beside it.

void quantize_int8(const float* x, int k, int group, Acts out) {
  for (int g = 0; g < k / group; g++) {
    float group_sum = 0;
    for (int block = g * group; block < (g + 1) * group; block += kActBlock) {
      vf top = splat(0);
      for (int i = 0; i < kActBlock; i += W) top = vmax(top, vabs(load(x + block + i)));
      const float amax = hmax(top), scale = amax / 127.0f;
      const vf factor = splat(amax > 0 ? 127.0f / amax : 0.0f);
      int sum = 0;
      for (int i = 0; i < kActBlock; i += W)
        sum += round_int8(x + block + i, factor, out.q + block + i);
      out.scale[block / kActBlock] = scale;
      group_sum += scale * static_cast<float>(sum);
    }
    out.sum[g] = group_sum;
  }
}

constexpr int F = kBlockRows / W;  // vectors that hold one value of each of the 16 rows

constexpr int kAhead = 2048;  // bytes of weights asked for in advance, past the outer caches

// One block of 16 rows for M tokens: acc[m][f] = sum over k.
template <int M>
inline void int4_block(const uint8_t* w, const Int4Job& job, int token, vf (&acc)[M][F]) {
  const int groups = job.k / job.group, subs = job.group / kActBlock;
  const int8_t* q[M];
  const float *scale[M], *sum[M];
  for (int m = 0; m < M; m++) {
    const int64_t row = static_cast<int64_t>(token + m) * job.row_step;
    q[m] = job.acts.q + row * job.k;
    scale[m] = job.acts.scale + row * (job.k / kActBlock);
    sum[m] = job.acts.sum + row * groups;
    for (int f = 0; f < F; f++) acc[m][f] = splat(0);
  }
  for (int g = 0; g < groups; g++) {
    vf part[M][F];
    for (int m = 0; m < M; m++)
      for (int f = 0; f < F; f++) part[m][f] = splat(0);
    for (int s = 0; s < subs; s++, w += 256) {
      Dots dots[M];
      for (int m = 0; m < M; m++) clear(dots[m]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        Nibbles low, high;
        if (M == 1) __builtin_prefetch(w + 64 * i + kAhead, 0, 0);  // memory is the limit
        unpack(w + 64 * i, low, high);
        for (int m = 0; m < M; m++) dot(dots[m], low, q[m] + 8 * i);
        for (int m = 0; m < M; m++) dot(dots[m], high, q[m] + 8 * i + 4);
      }
      for (int m = 0; m < M; m++) {
        drain(part[m], dots[m], scale[m][s]);
        q[m] += kActBlock;
      }
    }
    for (int f = 0; f < F; f++) {
      const vf ws = load_half(reinterpret_cast<const uint16_t*>(w) + f * W);
      const vf wz = load_u8(w + 32 + f * W);
      for (int m = 0; m < M; m++)
        acc[m][f] = fma(ws, part[m][f] - wz * splat(sum[m][g]), acc[m][f]);
    }
    for (int m = 0; m < M; m++) scale[m] += subs;
    w += 64;
  }
}

template <int M>
inline void int4_rows(const Int4Job& job, int block, int token) {
  const int64_t bytes = job.k / job.group * int4_block_bytes(job.group);
  vf acc[M][F];
  int4_block<M>(job.packed + block * bytes, job, token, acc);
  const int row = block * kBlockRows, n = job.n - row < kBlockRows ? job.n - row : kBlockRows;
  for (int m = 0; m < M; m++) {
    float* y = job.y + (token + m) * job.y_stride + row - job.first_row;
    for (int f = 0; f < F; f++) {
      if (n == kBlockRows) {
        const vf bias = job.bias ? load(job.bias + row + f * W) : splat(0);
        store(y + f * W, acc[m][f] + bias);
      } else {
        float tail[W];
        store(tail, acc[m][f]);
        for (int i = 0; i < W && f * W + i < n; i++)
          y[f * W + i] = tail[i] + (job.bias ? job.bias[row + f * W + i] : 0);
      }
    }
  }
}

// Tokens [t, last): M at a time, then fewer.
template <int M>
inline void int4_tokens(const Int4Job& job, int block, int t, int last) {
  for (; t + M <= last; t += M) int4_rows<M>(job, block, t);
  if constexpr (M > 1) int4_tokens<M / 2>(job, block, t, last);
}

void int4_linear(const Int4Job& job, int begin, int end) {
  constexpr int kTile = 64;  // tokens whose activations stay in L2 while the blocks pass
  for (int first = 0; first < job.tokens; first += kTile) {
    const int last = first + kTile < job.tokens ? first + kTile : job.tokens;
    for (int b = begin; b < end; b++) int4_tokens<kTokens>(job, b, first, last);
  }
}

// out = x^T W over `rows` rows: the absorbed product of MLA. Lanes are rows, so a channel's sum
// over all rows is kept in one vector and folded at the end.
void int4_transposed(const uint8_t* packed, int k, int group, int first, int rows, const float* x,
                     float* out) {
  constexpr int kMost = 16;  // row blocks a pass
  const int64_t block = int4_block_bytes(group), stride = k / group * block;
  for (int i = 0; i < k; i++) out[i] = 0;
  for (int r0 = 0; r0 < rows; r0 += kMost * kBlockRows) {
    const int blocks =
        (rows - r0 < kMost * kBlockRows ? rows - r0 : kMost * kBlockRows) / kBlockRows;
    for (int g = 0; g < k / group; g++) {
      const uint8_t* base = packed + (first + r0) / kBlockRows * stride + g * block;
      float scaled[kMost * kBlockRows];
      vf zero = splat(0);
      for (int b = 0; b < blocks; b++) {
        const uint8_t* tail = base + b * stride + block - 64;
        for (int f = 0; f < F; f++) {
          const vf v = load(x + r0 + b * kBlockRows + f * W) *
                       load_half(reinterpret_cast<const uint16_t*>(tail) + f * W);
          store(scaled + b * kBlockRows + f * W, v);
          zero = fma(v, load_u8(tail + 32 + f * W), zero);
        }
      }
      const float correction = hsum(zero);
      for (int i = 0; i < group / 8; i++) {
        vf sum[8];
        for (int j = 0; j < 8; j++) sum[j] = splat(0);
        for (int b = 0; b < blocks; b++)
          for (int f = 0; f < F; f++) {
            const words v = load_words(base + b * stride + 64 * i + 4 * W * f);
            const vf s = load(scaled + b * kBlockRows + f * W);
            sum[0] = fma(nibble<0>(v), s, sum[0]);
            sum[4] = fma(nibble<1>(v), s, sum[4]);
            sum[1] = fma(nibble<2>(v), s, sum[1]);
            sum[5] = fma(nibble<3>(v), s, sum[5]);
            sum[2] = fma(nibble<4>(v), s, sum[2]);
            sum[6] = fma(nibble<5>(v), s, sum[6]);
            sum[3] = fma(nibble<6>(v), s, sum[3]);
            sum[7] = fma(nibble<7>(v), s, sum[7]);
          }
        float eight[8];
        store_sums(eight, sum, 1.0f);
        store_sums(eight + 4, sum + 4, 1.0f);
        for (int j = 0; j < 8; j++) out[g * group + 8 * i + j] += eight[j] - correction;
      }
    }
  }
}
