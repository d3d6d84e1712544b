#include <algorithm>
#include <cstring>

#include "engine.h"

namespace youtu {

Acts take_acts(Arena& arena, int64_t rows, int k, int group) {
  Acts acts{};
  acts.q = arena.take<int8_t>(rows * k);
  acts.scale = arena.take<float>(rows * (k / kActBlock));
  acts.sum = arena.take<float>(rows * (k / group));
  return acts;
}

namespace {

// Row blocks of a chunk: about kChunkBytes, but a few chunks for every thread.
int block_grain(const Int4Linear& w, int most) {
  const int blocks = (w.n + kBlockRows - 1) / kBlockRows;
  const int64_t bytes = w.k / w.group * int4_block_bytes(w.group);
  const int even = std::max(1, blocks / (4 * pool_threads()));
  return static_cast<int>(
      std::min<int64_t>({std::max<int64_t>(1, kChunkBytes / bytes), even, most}));
}

void linear_dots(const Int4Linear& w, Arena arena) {
  const Acts acts = take_acts(arena, w.tokens, w.k, w.group);
  parallel_rows(w.tokens, w.k, [&](int t, int) {
    engine.isa->quantize_int8(w.x + t * w.x_stride, w.k, w.group, acts_row(acts, t, w.k, w.group));
  });
  Int4Job job{};
  job.packed = w.packed;
  job.n = w.n, job.k = w.k, job.group = w.group;
  job.acts = acts;
  job.row_step = 1;
  job.bias = w.bias;
  job.y = w.y;
  job.y_stride = w.n;
  job.tokens = w.tokens;
  const int blocks = (w.n + kBlockRows - 1) / kBlockRows, grain = block_grain(w, blocks);
  parallel((blocks + grain - 1) / grain, [&](int chunk, int) {
    engine.isa->int4_linear(job, chunk * grain, std::min(blocks, (chunk + 1) * grain));
  });
}

void linear_tiles(const Int4Linear& w, Arena arena) {
  const Tiles& tiles = *engine.isa->tiles;
  const int padded = (w.tokens + 31) / 32 * 32;
  auto* packed = arena.take<uint16_t>(static_cast<int64_t>(padded) * w.k);
  parallel_rows(padded, w.k, [&](int t, int) {
    tiles.pack_row(t < w.tokens ? w.x + t * w.x_stride : nullptr, w.k, t, packed);
  });
  const int blocks = (w.n + kBlockRows - 1) / kBlockRows;
  // Pairs of blocks fill the tiles; more share the activations in the first-level cache.
  const int share = blocks / (2 * pool_threads()) / 2 * 2;
  const int grain = std::min(kTileBlocks, std::max(2, share));
  parallel((blocks + grain - 1) / grain, [&](int chunk, int thread) {
    const TileJob job = {w.packed, w.n, w.k, w.group,  packed,
                         w.bias,   w.y, w.n, w.tokens, engine.thread_scratch(thread)};
    tiles.linear(job, chunk * grain, std::min(blocks, (chunk + 1) * grain));
  });
}

}  // namespace

void int4_linear(const Int4Linear& w, Arena arena) {
  const int64_t room = (arena.left() - 256) / std::max<int64_t>(acts_bytes(w.k, w.group), 2 * w.k);
  const int most = static_cast<int>(std::min<int64_t>(kTileTokens, room / 32 * 32));
  for (int first = 0; first < w.tokens; first += most) {
    Int4Linear part = w;
    part.x += first * w.x_stride;
    part.y += static_cast<int64_t>(first) * w.n;
    part.tokens = std::min(most, w.tokens - first);
    const Tiles* tiles = engine.isa->tiles;
    if (tiles && part.tokens >= tiles->min_tokens)
      linear_tiles(part, arena);
    else
      linear_dots(part, arena);
  }
}

namespace {

constexpr int kMostInputs = 1 << 18;  // 32 rows of them fit the workspace

bool int4_shape(int n, int k, int group) {
  return (group == 32 || group == 64 || group == 128) && n > 0 && k > 0 && n % 8 == 0 &&
         k % group == 0;
}

// AutoAWQ's nibble order: nibble i of a word holds output channel kChannel[i] of its eight.
constexpr int kNibbleOf[8] = {0, 4, 1, 5, 2, 6, 3, 7};
inline int awq_value(const int32_t* words, int64_t row, int n, int channel) {
  const auto word = static_cast<uint32_t>(words[row * (n / 8) + channel / 8]);
  return word >> (4 * kNibbleOf[channel % 8]) & 15;
}

void pack_block(uint8_t* out, const int32_t* qweight, const int32_t* qzeros, const uint16_t* scales,
                int n, int row, int g, int group) {
  std::memset(out, 0, int4_block_bytes(group));
  const int rows = std::min(kBlockRows, n - row);
  uint8_t* tail = out + kBlockRows * group / 2;
  for (int r = 0; r < rows; r++) {
    std::memcpy(tail + 2 * r, scales + static_cast<int64_t>(g) * n + row + r, 2);
    tail[32 + r] = awq_value(qzeros, g, n, row + r);
  }
  for (int i = 0; i < group; i++)
    for (int r = 0; r < rows; r++) {
      const int value = awq_value(qweight, static_cast<int64_t>(g) * group + i, n, row + r);
      out[64 * (i / 8) + 4 * r + i % 4] |= i % 8 < 4 ? value : value << 4;
    }
}

}  // namespace
}  // namespace youtu

using namespace youtu;

int64_t youtu_int4_bytes(int32_t n, int32_t k, int32_t group) {
  if (!int4_shape(n, k, group)) return 0;
  return static_cast<int64_t>((n + kBlockRows - 1) / kBlockRows) * (k / group) *
         int4_block_bytes(group);
}

int32_t youtu_int4_pack(void* packed, const int32_t* qweight, const int32_t* qzeros,
                        const void* scales, int32_t n, int32_t k, int32_t group, void*) {
  if (!int4_shape(n, k, group)) return YOUTU_EINVAL;
  const int groups = k / group, blocks = (n + kBlockRows - 1) / kBlockRows;
  // By group first: the AWQ rows of a group are contiguous.
  parallel(groups, [&](int g, int) {
    for (int b = 0; b < blocks; b++)
      pack_block(static_cast<uint8_t*>(packed) +
                     (static_cast<int64_t>(b) * groups + g) * int4_block_bytes(group),
                 qweight, qzeros, static_cast<const uint16_t*>(scales), n, b * kBlockRows, g,
                 group);
  });
  return YOUTU_OK;
}

int32_t youtu_int4_linear(void* y, const void* x, const void* packed, const void* bias,
                          int32_t num_tokens, int32_t n, int32_t k, int32_t group, int64_t x_stride,
                          void*) {
  if (!int4_shape(n, k, group) || k > kMostInputs || num_tokens < 0) return YOUTU_EINVAL;
  int4_linear({static_cast<const float*>(x), x_stride, static_cast<const uint8_t*>(packed),
               static_cast<const float*>(bias), static_cast<float*>(y), num_tokens, n, k, group},
              Arena());
  return YOUTU_OK;
}

int32_t youtu_int8_linear(void* y, const void* x, const void* weight, const void* scales,
                          const void* bias, int32_t num_tokens, int32_t n, int32_t k,
                          int64_t x_stride, void*) {
  if (n <= 0 || k <= 0 || k % 32 || k > 16384 || num_tokens < 0) return YOUTU_EINVAL;
  constexpr int kMost = 64;
  const int grain = static_cast<int>(std::max<int64_t>(1, kChunkBytes / k));
  for (int first = 0; first < num_tokens; first += kMost) {
    const int tokens = std::min(kMost, num_tokens - first);
    Arena arena;
    auto* q = arena.take<int16_t>(static_cast<int64_t>(tokens) * k);
    auto* q_scale = arena.take<float>(tokens);
    const float* rows = static_cast<const float*>(x) + first * x_stride;
    parallel_rows(tokens, k, [&](int t, int) {
      engine.isa->quantize_int16(rows + t * x_stride, k, q + static_cast<int64_t>(t) * k,
                                 q_scale + t);
    });
    Int8Job job{};
    job.weight = static_cast<const int8_t*>(weight);
    job.weight_scale = static_cast<const uint16_t*>(scales);
    job.k = k;
    job.x = q;
    job.x_scale = q_scale;
    job.bias = static_cast<const float*>(bias);
    job.y = static_cast<float*>(y) + static_cast<int64_t>(first) * n;
    job.y_stride = n;
    job.tokens = tokens;
    parallel((n + grain - 1) / grain, [&](int chunk, int) {
      engine.isa->int8_linear(job, chunk * grain, std::min(n, (chunk + 1) * grain));
    });
  }
  return YOUTU_OK;
}

int32_t youtu_dense_linear(void* y, const void* x, const void* weight, const void* bias,
                           int32_t num_tokens, int32_t n, int32_t k, int64_t x_stride, void*) {
  if (n <= 0 || k <= 0 || k % 16 || num_tokens < 0) return YOUTU_EINVAL;
  DenseJob job{};
  job.weight = static_cast<const float*>(weight);
  job.k = k;
  job.x = static_cast<const float*>(x);
  job.x_stride = x_stride;
  job.bias = static_cast<const float*>(bias);
  job.y = static_cast<float*>(y);
  job.y_stride = n;
  job.tokens = num_tokens;
  const int grain = static_cast<int>(std::max<int64_t>(4, kChunkBytes / (4 * k) / 4 * 4));
  parallel((n + grain - 1) / grain, [&](int chunk, int) {
    engine.isa->dense_linear(job, chunk * grain, std::min(n, (chunk + 1) * grain));
  });
  return YOUTU_OK;
}

int32_t youtu_int8_embed(void* y, const int64_t* ids, const void* weight, const void* scales,
                         int32_t num_tokens, int32_t n, int32_t vocab, void*) {
  if (n <= 0 || n % 16) return YOUTU_EINVAL;
  for (int t = 0; t < num_tokens; t++)
    if (ids[t] < 0 || ids[t] >= vocab) return YOUTU_EINVAL;
  parallel_rows(num_tokens, n, [&](int t, int) {
    const float scale = half_to_float(static_cast<const uint16_t*>(scales)[ids[t]]);
    engine.isa->int8_row(static_cast<const int8_t*>(weight) + ids[t] * n, scale, n,
                         static_cast<float*>(y) + static_cast<int64_t>(t) * n);
  });
  return YOUTU_OK;
}
