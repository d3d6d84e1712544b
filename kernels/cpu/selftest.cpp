#include "selftest.h"

#include <cmath>
#include <vector>

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
  std::vector<float> floats(int n) {
    std::vector<float> v(n);
    for (float& x : v) x = unit();
    return v;
  }
};

// Root mean square of the difference over that of the truth.
bool close(const std::vector<float>& y, const std::vector<double>& truth, double bound) {
  double error = 0, size = 0;
  for (size_t i = 0; i < truth.size(); i++) {
    error += (y[i] - truth[i]) * (y[i] - truth[i]);
    size += truth[i] * truth[i];
  }
  return error <= bound * bound * size;  // false for NaN
}

struct AlignedBytes {
  explicit AlignedBytes(int64_t n) : bytes(n + 64) {}
  uint8_t* data() {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
  }
  std::vector<uint8_t> bytes;
};

bool test_int4(Random& random, int tokens) {
  constexpr int n = 40, k = 256, group = 128;
  constexpr uint16_t kScale = 0x2c00;  // 2^-4
  std::vector<int32_t> q(k * n / 8), z(k / group * n / 8);
  for (auto& word : q) word = static_cast<int32_t>(random.bits());
  for (auto& word : z) word = static_cast<int32_t>(random.bits());
  std::vector<uint16_t> scales(k / group * n, kScale);
  AlignedBytes packed(youtu_int4_bytes(n, k, group));
  youtu_int4_pack(packed.data(), q.data(), z.data(), scales.data(), n, k, group, nullptr);
  const std::vector<float> x = random.floats(tokens * k);
  std::vector<float> y(tokens * n);
  youtu_int4_linear(y.data(), x.data(), packed.data(), nullptr, tokens, n, k, group, k, nullptr);
  static constexpr int kNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  const auto value = [](const std::vector<int32_t>& words, int row, int channel) {
    const auto word = static_cast<uint32_t>(words[row * (n / 8) + channel / 8]);
    return static_cast<int>(word >> (4 * kNibble[channel % 8]) & 15);
  };
  std::vector<double> truth(tokens * n, 0.0);
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < n; r++)
      for (int i = 0; i < k; i++)
        truth[t * n + r] += x[t * k + i] * 0.0625 * (value(q, i, r) - value(z, i / group, r));
  return close(y, truth, 1.2e-2);
}

bool test_int8(Random& random) {
  constexpr int n = 3, k = 64;
  std::vector<int8_t> w(n * k);
  for (auto& v : w) v = static_cast<int8_t>(static_cast<int>(random.bits() % 255) - 127);
  const std::vector<uint16_t> scales(n, 0x2c00);
  const std::vector<float> x = random.floats(k);
  std::vector<float> y(n);
  youtu_int8_linear(y.data(), x.data(), w.data(), scales.data(), nullptr, 1, n, k, k, nullptr);
  std::vector<double> truth(n, 0.0);
  for (int r = 0; r < n; r++)
    for (int i = 0; i < k; i++) truth[r] += 0.0625 * w[r * k + i] * x[i];
  return close(y, truth, 1e-3);
}

bool test_silu(Random& random) {
  constexpr int n = 37;
  std::vector<float> x = random.floats(2 * n), y(n);
  for (float& v : x) v *= 20;
  youtu_silu_mul(y.data(), x.data(), 1, n, nullptr);
  std::vector<double> truth(n);
  for (int i = 0; i < n; i++) truth[i] = x[i] / (1.0 + std::exp(-static_cast<double>(x[i]))) * x[n + i];
  return close(y, truth, 1e-6);
}

bool test_attention(Random& random, int dtype) {
  constexpr int heads = 6, kv_heads = 2, dim = 16, context = 77, tokens = 3, width = 2 * kv_heads * dim;
  std::vector<float> cache = random.floats(YOUTU_PAGE_SIZE * width), q = random.floats(tokens * heads * dim);
  std::vector<uint16_t> halves(cache.size());
  if (dtype == YOUTU_FLOAT16)
    for (size_t i = 0; i < cache.size(); i++) {
      engine.isa->store_cache(&halves[i], &cache[i], 1, dtype);
      cache[i] = half_to_float(halves[i]);
    }
  const int64_t address = dtype == YOUTU_FLOAT16 ? reinterpret_cast<int64_t>(halves.data())
                                                 : reinterpret_cast<int64_t>(cache.data());
  const int32_t start[2] = {0, tokens}, length = context, table = 0;
  youtu_step step{};
  step.query_start = start;
  step.context_len = &length;
  step.page_table = &table;
  step.page_addresses = &address;
  step.num_tokens = tokens, step.num_seqs = 1, step.table_width = 1;
  step.cache_width = width, step.cache_dtype = dtype;
  std::vector<float> y(tokens * heads * dim);
  youtu_gqa_attention(y.data(), q.data(), heads * dim, &step, heads, kv_heads, dim, 0, 0.25f, nullptr);
  std::vector<double> truth(y.size(), 0.0);
  for (int row = 0; row < tokens * heads; row++) {
    const int sees = context - tokens + row / heads + 1, kv = row % heads / (heads / kv_heads);
    double weights[context], total = 0;
    for (int c = 0; c < sees; c++) {
      double score = 0;
      for (int d = 0; d < dim; d++) score += q[row * dim + d] * cache[c * width + kv * dim + d];
      total += weights[c] = std::exp(score * 0.25);
    }
    for (int c = 0; c < sees; c++)
      for (int d = 0; d < dim; d++)
        truth[row * dim + d] += weights[c] / total * cache[c * width + (kv_heads + kv) * dim + d];
  }
  return close(y, truth, 2e-5);
}

}  // namespace

bool self_test() {
  Random random;
  return test_int4(random, 1) && test_int4(random, 7) && test_int4(random, 40) && test_int8(random) &&
         test_silu(random) && test_attention(random, YOUTU_FLOAT32) && test_attention(random, YOUTU_FLOAT16);
}

}  // namespace youtu
