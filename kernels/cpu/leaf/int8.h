// INT8 rows (head, embedding) over simd/*.h: int16 activations, so logits keep 13 bits of them.

constexpr float kInt16Top = 8191.0f;  // 127 * 8191 * k / lanes stays under 2^31 up to k = 16384, 8 lanes

void quantize_int16(const float* x, int k, int16_t* q, float* scale) {
  vf top = splat(0);
  for (int i = 0; i < k; i += W) top = vmax(top, vabs(load(x + i)));
  const float amax = hmax(top);
  const vf factor = splat(amax > 0 ? kInt16Top / amax : 0.0f);
  for (int i = 0; i < k; i += W) round_int16(x + i, factor, q + i);
  *scale = amax / kInt16Top;
}

template <int M, int R>
inline void int8_rows(const Int8Job& job, int row, int token) {
  vi acc[M][R];
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) acc[m][r] = zero_i();
  const int8_t* w = job.weight + static_cast<int64_t>(row) * job.k;
  const int16_t* x = job.x + static_cast<int64_t>(token) * job.k;
  for (int i = 0; i < job.k; i += kInt8Step) {
    i8x16 v[R];
    for (int r = 0; r < R; r++) v[r] = load_i8(w + static_cast<int64_t>(r) * job.k + i);
    for (int m = 0; m < M; m++)
      for (int r = 0; r < R; r++)
        acc[m][r] = dot_i16(acc[m][r], v[r], x + static_cast<int64_t>(m) * job.k + i);
  }
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) {
      const float scale = job.x_scale[token + m] * half_to_float(job.weight_scale[row + r]);
      job.y[(token + m) * job.y_stride + row + r] =
          hsum_i(acc[m][r]) * scale + (job.bias ? job.bias[row + r] : 0);
    }
}

template <int R>
inline void int8_tokens(const Int8Job& job, int row) {
  int t = 0;
  for (; t + 4 <= job.tokens; t += 4) int8_rows<4, R>(job, row, t);
  if (job.tokens - t == 3) int8_rows<3, R>(job, row, t);
  if (job.tokens - t == 2) int8_rows<2, R>(job, row, t);
  if (job.tokens - t == 1) int8_rows<1, R>(job, row, t);
}

void int8_linear(const Int8Job& job, int begin, int end) {
  int row = begin;
  for (; row + 2 <= end; row += 2) int8_tokens<2>(job, row);
  if (row < end) int8_tokens<1>(job, row);
}

void int8_row(const int8_t* weight, float scale, int n, float* y) {
  for (int i = 0; i < n; i += W) store(y + i, widen_i8(weight + i) * splat(scale));
}
