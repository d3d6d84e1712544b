// Norms, activations, rotary, conversions over simd/*.h. Included inside an anonymous namespace.

inline vf vexp(vf x) {  // within 2 ulp on [-87, 88], clamped outside (Cephes' polynomial)
  x = vmax(splat(-87.0f), vmin(x, splat(88.0f)));
  const vf n = vround(x * splat(1.44269504f));
  const vf r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
  vf p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  return fma(p, r * r, r + splat(1.0f)) * pow2(n);
}

inline float root(float x) { return __builtin_sqrtf(x); }

// Loops take whole vectors and then the tail one value at a time.
inline float sum_squares(const float* x, int n) {
  vf a = splat(0), b = splat(0);
  int i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    const vf u = load(x + i), v = load(x + i + W);
    a = fma(u, u, a);
    b = fma(v, v, b);
  }
  float sum = hsum(a + b);
  for (; i < n; i++) sum += x[i] * x[i];
  return sum;
}

void rms_norm(float* y, const float* x, const float* weight, int n, float eps) {
  const float factor = 1.0f / root(sum_squares(x, n) / n + eps);
  int i = 0;
  for (; i + W <= n; i += W) store(y + i, load(x + i) * splat(factor) * load(weight + i));
  for (; i < n; i++) y[i] = x[i] * factor * weight[i];
}

void add_rms_norm(float* y, float* residual, const float* x, const float* weight, int n,
                  float eps) {
  int i = 0;
  for (; i + W <= n; i += W) store(residual + i, load(residual + i) + load(x + i));
  for (; i < n; i++) residual[i] += x[i];
  rms_norm(y, residual, weight, n, eps);
}

void layer_norm(float* y, const float* x, const float* weight, const float* bias, int n,
                float eps) {
  vf total = splat(0);
  int i = 0;
  for (; i + W <= n; i += W) total = total + load(x + i);
  float sum = hsum(total);
  for (; i < n; i++) sum += x[i];
  const float mean = sum / n;
  for (i = 0; i + W <= n; i += W) store(y + i, load(x + i) - splat(mean));
  for (; i < n; i++) y[i] = x[i] - mean;
  const float factor = 1.0f / root(sum_squares(y, n) / n + eps);
  for (i = 0; i + W <= n; i += W)
    store(y + i, fma(load(y + i) * splat(factor), load(weight + i), load(bias + i)));
  for (; i < n; i++) y[i] = y[i] * factor * weight[i] + bias[i];
}

inline vf logistic_times(vf factor, vf x) {  // factor * sigmoid(x)
  return factor / (splat(1.0f) + vexp(splat(0.0f) - x));
}

// The tail of a row goes through a padded vector: one formula, one accuracy.
template <class F>
inline void elementwise(float* y, const float* a, const float* b, int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(y + i, f(load(a + i), load(b + i)));
  if (i == n) return;
  float ta[W] = {}, tb[W] = {};
  for (int64_t j = i; j < n; j++) ta[j - i] = a[j], tb[j - i] = b[j];
  store(ta, f(load(ta), load(tb)));
  for (int64_t j = i; j < n; j++) y[j] = ta[j - i];
}

void silu_mul(float* y, const float* gate, const float* up, int64_t n) {
  elementwise(y, gate, up, n, [](vf g, vf u) { return logistic_times(g, g) * u; });
}

void gelu_tanh(float* y, const float* x, int64_t n) {
  // 0.5 (1 + tanh(u)) = sigmoid(2 u)
  elementwise(y, x, x, n, [](vf v, vf) {
    const vf cubic = v * v * v;
    return logistic_times(v, fma(cubic, splat(0.0713548163f), v * splat(1.5957691216f)));
  });
}

void rotate(float* head, const RopeJob& job) {
  const int half = job.dim / 2;
  if (job.interleaved) {
    for (int i = 0; i < half; i++) {
      const float a = head[2 * i], b = head[2 * i + 1];
      head[2 * i] = a * job.cos[i] - b * job.sin[i];
      head[2 * i + 1] = b * job.cos[i] + a * job.sin[i];
    }
    return;
  }
  for (int i = 0; i < half; i++) {
    const float a = head[i], b = head[half + i];
    head[i] = a * job.cos[i] - b * job.sin[i];
    head[half + i] = b * job.cos[i] + a * job.sin[i];
  }
}

void store_cache(void* entry, const float* x, int n, int dtype) {
  int i = 0;
  if (dtype == YOUTU_FLOAT32) {
    __builtin_memcpy(entry, x, sizeof(float) * n);
    return;
  }
  auto* out = static_cast<uint16_t*>(entry);
  for (; i + W <= n; i += W) store_half(out + i, load(x + i));
  if (i == n) return;
  float tail[W] = {};
  uint16_t halves[W];
  for (int j = i; j < n; j++) tail[j - i] = x[j];
  store_half(halves, load(tail));
  for (int j = i; j < n; j++) out[j] = halves[j - i];
}

void load_cache(float* x, const void* entry, int n, int dtype) {
  if (dtype == YOUTU_FLOAT32) {
    __builtin_memcpy(x, entry, sizeof(float) * n);
    return;
  }
  const auto* half = static_cast<const uint16_t*>(entry);
  for (int i = 0; i < n; i += W) store(x + i, load_half(half + i));
}

void scale_row(float* out, float factor, int n) {
  int i = 0;
  for (; i + W <= n; i += W) store(out + i, load(out + i) * splat(factor));
  for (; i < n; i++) out[i] *= factor;
}

uint64_t read(const uint8_t* data, int64_t bytes) {
  typedef uint64_t v4 __attribute__((vector_size(32)));
  v4 a = {}, b = {}, c = {}, d = {};
  for (int64_t i = 0; i + 128 <= bytes; i += 128) {
    const v4* p = reinterpret_cast<const v4*>(data + i);
    a ^= p[0], b ^= p[1], c ^= p[2], d ^= p[3];
  }
  a = a ^ b ^ c ^ d;
  return a[0] ^ a[1] ^ a[2] ^ a[3];
}
