// INT8 rows (head, embedding) over simd/*.h: int16 activations, so logits keep 13 bits of them.

constexpr float kInt16Top =
    8191.0f;  // 127 * 8191 * k / lanes stays under 2^31 up to k = 16384, 8 lanes

void quantize_int16(const float* x, int k, int16_t* q, float* scale) {
  vf top = splat(0);
  for (int i = 0; i < k; i += W) top = vmax(top, vabs(load(x + i)));
  const float amax = hmax(top);
  const vf factor = splat(amax > 0 ? kInt16Top / amax : 0.0f);
  for (int i = 0; i < k; i += W) round_int16(x + i, factor, q + i);
  *scale = amax / kInt16Top;
}

constexpr int kRows = 4;  // rows of W at a time: their sums fold together

template <int M>
inline void int8_rows(const Int8Job& job, int row, int token) {
  vi acc[M][kRows];
  for (int m = 0; m < M; m++)
    for (int r = 0; r < kRows; r++) acc[m][r] = zero_i();
  const int8_t* w = job.weight + static_cast<int64_t>(row) * job.k;
  const int16_t* x = job.x + static_cast<int64_t>(token) * job.k;
  for (int i = 0; i < job.k; i += kInt8Step) {
    // Four short streams defeat the hardware's prefetcher: ask for the next four rows.
    __builtin_prefetch(w + kRows * (static_cast<int64_t>(job.k) + i));
    for (int r = 0; r < kRows; r++) {
      const i8s v = load_i8(w + static_cast<int64_t>(r) * job.k + i);
      for (int m = 0; m < M; m++)
        acc[m][r] = dot_i16(acc[m][r], v, x + static_cast<int64_t>(m) * job.k + i);
    }
  }
  for (int m = 0; m < M; m++) {
    vf sums[kRows];
    float folded[kRows];
    for (int r = 0; r < kRows; r++) sums[r] = to_float(acc[m][r]);
    store_sums(folded, sums, job.x_scale[token + m]);
    float* y = job.y + (token + m) * job.y_stride + row;
    for (int r = 0; r < kRows; r++)
      y[r] =
          folded[r] * half_value(job.weight_scale + row + r) + (job.bias ? job.bias[row + r] : 0);
  }
}

// The last rows, fewer than kRows.
inline void int8_rest(const Int8Job& job, int row) {
  for (int t = 0; t < job.tokens; t++) {
    vi acc = zero_i();
    for (int i = 0; i < job.k; i += kInt8Step)
      acc = dot_i16(acc, load_i8(job.weight + static_cast<int64_t>(row) * job.k + i),
                    job.x + static_cast<int64_t>(t) * job.k + i);
    job.y[t * job.y_stride + row] =
        hsum(to_float(acc)) * job.x_scale[t] * half_value(job.weight_scale + row) +
        (job.bias ? job.bias[row] : 0);
  }
}

void int8_linear(const Int8Job& job, int begin, int end) {
  int row = begin;
  for (; row + kRows <= end; row += kRows) {
    int t = 0;
    for (; t + 2 <= job.tokens; t += 2) int8_rows<2>(job, row, t);
    if (t < job.tokens) int8_rows<1>(job, row, t);
  }
  for (; row < end; row++) int8_rest(job, row);
}

void int8_row(const int8_t* weight, float scale, int n, float* y) {
  for (int i = 0; i < n; i += W) store(y + i, widen_i8(weight + i) * splat(scale));
}
