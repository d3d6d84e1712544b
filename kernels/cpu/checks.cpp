#include "checks.h"

#include <algorithm>
#include <cmath>

#include "engine.h"

namespace youtu {
namespace {

struct Random {
  uint64_t state = 88172645463325252u;
  uint32_t bits() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>(state >> 32);
  }
  float unit() { return static_cast<float>(bits() >> 8) / (1 << 23) - 1.0f; }  // [-1, 1)
  std::vector<float> floats(int64_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = unit();
    return v;
  }
};

// Collects results beside their truth.
class Error {
 public:
  void add(double y, double truth) {
    error_ += (y - truth) * (y - truth);
    size_ += truth * truth;
  }
  void failed(int32_t status) {
    if (status != YOUTU_OK) error_ = NAN;
  }
  double relative() const { return std::sqrt(error_ / size_); }

 private:
  double error_ = 0, size_ = 0;
};

struct Int4 {
  static constexpr uint16_t kScales[2] = {0x2c00, 0x2a00};  // 2^-4, 3 * 2^-6: they alternate by row
  int n, k, group;
  std::vector<int32_t> q, z;
  std::vector<uint8_t> bytes;

  Int4(Random& random, int n, int k, int group)
      : n(n),
        k(k),
        group(group),
        q(static_cast<int64_t>(k) * n / 8),
        z(k / group * n / 8),
        bytes(youtu_int4_bytes(n, k, group) + 64) {
    for (auto& word : q) word = static_cast<int32_t>(random.bits());
    for (auto& word : z) word = static_cast<int32_t>(random.bits());
    std::vector<uint16_t> scales(k / group * n);
    for (size_t i = 0; i < scales.size(); i++) scales[i] = kScales[i % n % 2];
    youtu_int4_pack(packed(), q.data(), z.data(), scales.data(), n, k, group, nullptr);
  }
  void* packed() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
  }
  static int nibble(int32_t word, int channel) {
    static constexpr int kNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // AutoAWQ's order
    return static_cast<int>(static_cast<uint32_t>(word) >> (4 * kNibble[channel]) & 15);
  }
  double value(int row, int i) const {
    const int64_t word = static_cast<int64_t>(i) * (n / 8) + row / 8;
    const int zero = nibble(z[i / group * (n / 8) + row / 8], row % 8);
    return (nibble(q[word], row % 8) - zero) * static_cast<double>(half_to_float(kScales[row % 2]));
  }
};

// A paged cache of one layer more than is used, its pages in reverse order.
struct Paged {
  int width;
  std::vector<float> values;  // what the cache holds, exactly
  std::vector<uint16_t> halves;
  std::vector<int64_t> addresses;
  std::vector<int32_t> table, start{0}, context;
  youtu_step step{};
  static constexpr int kLayer = 1, kLayers = 2;

  Paged(Random& random, int width, int dtype, const std::vector<Span>& spans) : width(width) {
    int columns = 1, pages = 0, tokens = 0;
    for (const Span& span : spans) columns = std::max(columns, pages_of(span));
    for (const Span& span : spans) {
      for (int p = 0; p < columns; p++) table.push_back(p < pages_of(span) ? pages + p : -1);
      pages += pages_of(span);
      start.push_back(tokens += span.tokens);
      context.push_back(span.context);
    }
    for (int32_t& page : table) page = page < 0 ? page : pages - 1 - page;
    const int64_t page_values = static_cast<int64_t>(kLayers) * YOUTU_PAGE_SIZE * width;
    values = random.floats(pages * page_values);
    if (dtype == YOUTU_FLOAT16) {
      halves.resize(values.size());
      engine.isa->store_cache(halves.data(), values.data(), static_cast<int>(values.size()), dtype);
      for (size_t i = 0; i < values.size(); i++) values[i] = half_to_float(halves[i]);
    }
    for (int p = 0; p < pages; p++)
      addresses.push_back(dtype == YOUTU_FLOAT16
                              ? reinterpret_cast<int64_t>(halves.data() + p * page_values)
                              : reinterpret_cast<int64_t>(values.data() + p * page_values));
    step.query_start = start.data();
    step.context_len = context.data();
    step.page_table = table.data();
    step.page_addresses = addresses.data();
    step.num_tokens = tokens;
    step.num_seqs = static_cast<int>(spans.size());
    step.table_width = columns;
    step.cache_width = width;
    step.cache_dtype = dtype;
  }
  static int pages_of(const Span& span) {
    return (span.context + YOUTU_PAGE_SIZE - 1) / YOUTU_PAGE_SIZE;
  }
  const float* entry(int s, int c) const {
    const int64_t page = table[s * step.table_width + c / YOUTU_PAGE_SIZE];
    return values.data() +
           ((page * kLayers + kLayer) * YOUTU_PAGE_SIZE + c % YOUTU_PAGE_SIZE) * width;
  }
};

// softmax(scores) . values: scores[c], value(c, d).
template <class Value>
std::vector<double> mix(std::vector<double> scores, int dim, const Value& value) {
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - top);
  std::vector<double> out(dim, 0.0);
  for (size_t c = 0; c < scores.size(); c++)
    for (int d = 0; d < dim; d++) out[d] += scores[c] / total * value(static_cast<int>(c), d);
  return out;
}

}  // namespace

double check_int4(int n, int k, int group, int tokens) {
  Random random;
  Int4 w(random, n, k, group);
  const std::vector<float> x = random.floats(static_cast<int64_t>(tokens) * k),
                           bias = random.floats(n);
  std::vector<float> y(static_cast<int64_t>(tokens) * n);
  Error error;
  error.failed(youtu_int4_linear(y.data(), x.data(), w.packed(), bias.data(), tokens, n, k, group,
                                 k, nullptr));
  const int step = n > 64 ? 29 : 1;  // enough rows to see every lane and both ends
  for (int r = n - 1; r >= 0; r -= step) {
    std::vector<double> row(k);
    for (int i = 0; i < k; i++) row[i] = w.value(r, i);
    for (int t = 0; t < tokens; t++) {
      double truth = bias[r];
      for (int i = 0; i < k; i++) truth += row[i] * x[static_cast<int64_t>(t) * k + i];
      error.add(y[static_cast<int64_t>(t) * n + r], truth);
    }
  }
  return error.relative();
}

double check_int8(int n, int k, int tokens) {
  Random random;
  std::vector<int8_t> w(static_cast<int64_t>(n) * k);
  for (auto& v : w) v = static_cast<int8_t>(static_cast<int>(random.bits() % 255) - 127);
  const std::vector<uint16_t> scales(n, 0x2c00);  // 2^-4
  const std::vector<float> x = random.floats(static_cast<int64_t>(tokens) * k);
  std::vector<float> y(static_cast<int64_t>(tokens) * n);
  Error error;
  error.failed(youtu_int8_linear(y.data(), x.data(), w.data(), scales.data(), nullptr, tokens, n, k,
                                 k, nullptr));
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < n; r++) {
      double truth = 0;
      for (int i = 0; i < k; i++)
        truth += 0.0625 * w[static_cast<int64_t>(r) * k + i] * x[t * k + i];
      error.add(y[t * n + r], truth);
    }
  return error.relative();
}

double check_dense(int n, int k, int tokens) {
  Random random;
  const std::vector<float> w = random.floats(static_cast<int64_t>(n) * k),
                           x = random.floats(tokens * k);
  std::vector<float> y(static_cast<int64_t>(tokens) * n);
  Error error;
  error.failed(youtu_dense_linear(y.data(), x.data(), w.data(), nullptr, tokens, n, k, k, nullptr));
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < n; r++) {
      double truth = 0;
      for (int i = 0; i < k; i++) truth += static_cast<double>(w[r * k + i]) * x[t * k + i];
      error.add(y[t * n + r], truth);
    }
  return error.relative();
}

double check_token_wise(int n, int tokens) {
  Random random;
  const int64_t count = static_cast<int64_t>(tokens) * n;
  std::vector<float> x = random.floats(2 * count), weight = random.floats(n),
                     bias = random.floats(n);
  for (float& v : x) v *= 8;
  std::vector<float> rms(count), layer(count), added(count), silu(count), gelu(count);
  std::vector<float> residual = random.floats(count), before = residual;
  Error errors[5];
  constexpr float kEps = 1e-6f;
  errors[0].failed(
      youtu_rms_norm(rms.data(), x.data(), weight.data(), tokens, n, n, kEps, nullptr));
  errors[1].failed(youtu_layer_norm(layer.data(), x.data(), weight.data(), bias.data(), tokens, n,
                                    kEps, nullptr));
  errors[2].failed(youtu_add_rms_norm(added.data(), residual.data(), x.data(), weight.data(),
                                      tokens, n, kEps, nullptr));
  errors[3].failed(youtu_silu_mul(silu.data(), x.data(), tokens, n, nullptr));
  errors[4].failed(youtu_gelu_tanh(gelu.data(), x.data(), count, nullptr));
  for (int t = 0; t < tokens; t++) {
    const float* row = x.data() + static_cast<int64_t>(t) * n;
    const float* old = before.data() + static_cast<int64_t>(t) * n;
    double squares = 0, sum = 0, deviation = 0, total = 0;
    for (int i = 0; i < n; i++) squares += static_cast<double>(row[i]) * row[i], sum += row[i];
    const double mean = sum / n;
    for (int i = 0; i < n; i++) {
      deviation += (row[i] - mean) * (row[i] - mean);
      total += (static_cast<double>(old[i]) + row[i]) * (static_cast<double>(old[i]) + row[i]);
    }
    for (int i = 0; i < n; i++) {
      const int64_t at = static_cast<int64_t>(t) * n + i;
      errors[0].add(rms[at], row[i] / std::sqrt(squares / n + kEps) * weight[i]);
      errors[1].add(layer[at],
                    (row[i] - mean) / std::sqrt(deviation / n + kEps) * weight[i] + bias[i]);
      errors[2].add(added[at], (static_cast<double>(old[i]) + row[i]) /
                                   std::sqrt(total / n + kEps) * weight[i]);
      const double gate = x[2 * static_cast<int64_t>(t) * n + i],
                   up = x[(2 * static_cast<int64_t>(t) + 1) * n + i];
      errors[3].add(silu[at], gate / (1 + std::exp(-gate)) * up);
      const double v = row[i];
      errors[4].add(gelu[at],
                    0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))));
    }
  }
  double worst = 0;
  for (const Error& error : errors) worst = error.relative() <= worst ? worst : error.relative();
  return worst;
}

double check_gqa(int heads, int kv_heads, int dim, int dtype, const std::vector<Span>& spans) {
  Random random;
  const Paged data(random, 2 * kv_heads * dim, dtype, spans);
  const std::vector<float> q =
      random.floats(static_cast<int64_t>(data.step.num_tokens) * heads * dim);
  std::vector<float> y(q.size());
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  Error error;
  error.failed(youtu_gqa_attention(y.data(), q.data(), heads * dim, &data.step, heads, kv_heads,
                                   dim, Paged::kLayer, scale, nullptr));
  for (size_t s = 0; s < spans.size(); s++)
    for (int t = 0; t < spans[s].tokens; t++)
      for (int h = 0; h < heads; h++) {
        const int64_t at = (static_cast<int64_t>(data.start[s] + t) * heads + h) * dim;
        const int kv = h / (heads / kv_heads) * dim;
        std::vector<double> scores(spans[s].context - spans[s].tokens + t + 1, 0.0);
        for (size_t c = 0; c < scores.size(); c++)
          for (int d = 0; d < dim; d++)
            scores[c] += static_cast<double>(q[at + d]) * data.entry(s, c)[kv + d] * scale;
        const auto truth = mix(scores, dim, [&](int c, int d) {
          return static_cast<double>(data.entry(s, c)[kv_heads * dim + kv + d]);
        });
        for (int d = 0; d < dim; d++) error.add(y[at + d], truth[d]);
      }
  return error.relative();
}

double check_mla(int group, int dtype, const std::vector<Span>& spans) {
  constexpr int heads = 4, nope = 32, rope = 16, v_dim = 48, rank = 256, q_dim = nope + rope;
  Random random;
  Int4 w(random, heads * (nope + v_dim), rank, 128);
  std::vector<float> dense;
  for (int r = 0; r < heads * (nope + v_dim); r++)
    for (int i = 0; i < rank; i++) dense.push_back(static_cast<float>(w.value(r, i)));
  const void* kv_b = group ? w.packed() : dense.data();
  const Paged data(random, rank + rope, dtype, spans);
  const int tokens = data.step.num_tokens;
  const std::vector<float> q = random.floats(static_cast<int64_t>(tokens) * heads * q_dim);
  std::vector<float> y(static_cast<int64_t>(tokens) * heads * v_dim);
  constexpr float kScale = 0.02f;
  Error error;
  const youtu_mla_attention_args args = {y.data(), q.data(), kv_b, group,         heads, nope,
                                         rope,     v_dim,    rank, Paged::kLayer, kScale};
  error.failed(youtu_mla_attention(&args, &data.step, nullptr));
  for (size_t s = 0; s < spans.size(); s++)
    for (int h = 0; h < heads; h++) {
      std::vector<double> expanded(static_cast<int64_t>(spans[s].context) * (nope + v_dim), 0.0);
      for (int r = 0; r < nope + v_dim; r++)
        for (int i = 0; i < rank; i++) {
          const double weight = w.value(h * (nope + v_dim) + r, i);
          for (int c = 0; c < spans[s].context; c++)
            expanded[c * (nope + v_dim) + r] += weight * data.entry(s, c)[i];
        }
      for (int t = 0; t < spans[s].tokens; t++) {
        const int64_t row = static_cast<int64_t>(data.start[s] + t) * heads + h;
        std::vector<double> scores(spans[s].context - spans[s].tokens + t + 1, 0.0);
        for (size_t c = 0; c < scores.size(); c++)
          for (int d = 0; d < q_dim; d++)
            scores[c] += q[row * q_dim + d] * kScale *
                         (d < nope ? expanded[c * (nope + v_dim) + d]
                                   : static_cast<double>(data.entry(s, c)[rank + d - nope]));
        const auto truth = mix(
            scores, v_dim, [&](int c, int d) { return expanded[c * (nope + v_dim) + nope + d]; });
        for (int d = 0; d < v_dim; d++) error.add(y[row * v_dim + d], truth[d]);
      }
    }
  return error.relative();
}

bool self_test() {
  return check_int4(40, 256, 128, 1) < kInt4Bound && check_int4(40, 256, 64, 7) < kInt4Bound &&
         check_int4(40, 1024, 128, 40) < kInt4Bound && check_int8(7, 64, 3) < kInt8Bound &&
         check_token_wise(37, 2) < kFloatBound &&
         check_gqa(6, 2, 16, YOUTU_FLOAT32, {{3, 77}}) < kAttentionBound &&
         check_gqa(6, 2, 16, YOUTU_FLOAT16, {{1, 300}}) < kAttentionBound &&
         check_mla(128, YOUTU_FLOAT16, {{2, 70}}) < kMlaBound &&
         check_dense(7, 48, 3) < kFloatBound;
}

}  // namespace youtu
