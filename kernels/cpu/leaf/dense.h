// Unquantised linears over simd/*.h, in float32 throughout.

// R tokens by four rows of W; k is a multiple of 16.
template <int R>
inline void dense_rows(const DenseJob& job, int row, int token) {
  const float* w = job.weight + static_cast<int64_t>(row) * job.k;
  const float* x = job.x + token * job.x_stride;
  vf sum[R][4];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < 4; i++) sum[r][i] = splat(0);
  for (int d = 0; d < job.k; d += W) {
    if (R == 1) __builtin_prefetch(w + 4 * (static_cast<int64_t>(job.k) + d));
    for (int r = 0; r < R; r++) {
      const vf v = load(x + r * job.x_stride + d);
      for (int i = 0; i < 4; i++)
        sum[r][i] = fma(v, load(w + static_cast<int64_t>(i) * job.k + d), sum[r][i]);
    }
  }
  for (int r = 0; r < R; r++) {
    float four[4];
    store_sums(four, sum[r], 1.0f);
    float* y = job.y + (token + r) * job.y_stride + row - job.first_row;
    for (int i = 0; i < 4; i++) y[i] = four[i] + (job.bias ? job.bias[row + i] : 0);
  }
}

template <int R>
inline void dense_tokens(const DenseJob& job, int row, int t, int last) {
  for (; t + R <= last; t += R) dense_rows<R>(job, row, t);
  if constexpr (R > 1) dense_tokens<R / 2>(job, row, t, last);
}

void dense_linear(const DenseJob& job, int begin, int end) {
  constexpr int kMost = kRegisters < 32 ? 2 : 4;  // R x 4 sums fit the registers
  constexpr int kTokenTile = 32;
  for (int first = 0; first < job.tokens; first += kTokenTile) {
    const int last = first + kTokenTile < job.tokens ? first + kTokenTile : job.tokens;
    int row = begin;
    for (; row + 4 <= end; row += 4) dense_tokens<kMost>(job, row, first, last);
    for (; row < end; row++)
      for (int t = first; t < last; t++) {
        vf sum = splat(0);
        for (int d = 0; d < job.k; d += W)
          sum = fma(load(job.x + t * job.x_stride + d),
                    load(job.weight + static_cast<int64_t>(row) * job.k + d), sum);
        job.y[t * job.y_stride + row - job.first_row] = hsum(sum) + (job.bias ? job.bias[row] : 0);
      }
  }
}

// out = x^T W over `rows` rows: the absorbed product of MLA.
void dense_transposed(const float* w, int k, int rows, const float* x, float* out) {
  for (int i = 0; i < k; i += W) {
    vf sum = splat(0);
    for (int r = 0; r < rows; r++)
      sum = fma(splat(x[r]), load(w + static_cast<int64_t>(r) * k + i), sum);
    store(out + i, sum);
  }
}
