// One instruction set = one table of leaf kernels. A leaf works on plain pointers in one thread.
//
// Each table is built in its own translation unit with its own compiler flags. Everything those
// units share through headers sits in their anonymous namespaces (or is plain data, as here): a
// std:: template or an inline function compiled there for AVX-512 could be the copy the linker
// keeps for everyone.
#pragma once

#include <cstdint>

#include "../include/youtu_kernels.h"

namespace youtu {

// INT4 tile order: blocks of 16 output rows by one group of input channels; see README.md.
constexpr int kBlockRows = 16;
constexpr int kActBlock = 32;  // activations that share an int8 scale
constexpr int64_t int4_block_bytes(int group) { return kBlockRows * group / 2 + 64; }

// What a thread may use while it runs a leaf: keys and values of a tile, or expanded weights.
constexpr int64_t kThreadScratch = 1 << 20;

// Rows of activations in int8: q [rows, k], scale [rows, k / kActBlock], and sum [rows, k / group],
// which is what a zero point of 1 takes away.
struct Acts {
  int8_t* q;
  float* scale;
  float* sum;
};

// y[t, 16 b ..] for row blocks b in [begin, end) and `tokens` rows.
struct Int4Job {
  const uint8_t* packed;
  int n, k, group;
  Acts acts;
  int row_step;  // in the rows of acts, from one token to the next
  const float* bias;
  float* y;
  int64_t y_stride;
  int tokens;
  int first_row;  // the row of W that lands in y[0]
};

// The same in tiles: activations as bf16, weights expanded to bf16 (leaf/tiles.h).
struct TileJob {
  const uint8_t* packed;
  int n, k, group;
  const uint16_t* tiles;
  const float* bias;
  float* y;
  int64_t y_stride;
  int tokens;      // at most kTileTokens
  float* scratch;  // kThreadScratch bytes
};

constexpr int kTileTokens = 512;
constexpr int kTileBlocks = 16;  // row blocks of a call, at most

struct Tiles {
  int min_tokens;  // fewer are quicker without tiles
  // Row `row` of x into the tiles of all rows; x null: zeros. Rows come in 32s.
  void (*pack_row)(const float* x, int k, int row, uint16_t* tiles);
  void (*linear)(const TileJob&, int begin, int end);
};

struct Int8Job {
  const int8_t* weight;
  const uint16_t* weight_scale;
  int k;
  const int16_t* x;      // [tokens, k]
  const float* x_scale;  // [tokens]
  const float* bias;
  float* y;
  int64_t y_stride;
  int tokens;
};

struct DenseJob {
  const float* weight;  // [n, k]
  int k;
  const float* x;
  int64_t x_stride;
  const float* bias;
  float* y;
  int64_t y_stride;
  int tokens;
  int first_row;  // the row of W that lands in y[0]
};

// Queries against one stream of keys and values with an online softmax (Milakov & Gimelshein,
// 2018). Row r is token r / heads, head r % heads.
struct AttendJob {
  const float* q;  // row r at q + token * q_stride + head * q_head_stride
  int64_t q_stride, q_head_stride;
  float* out;  // likewise; unnormalised until `finish`
  int64_t out_stride, out_head_stride;
  float* state;  // [rows, 2] running maximum and sum, state_stride values a row
  int state_stride;
  int tokens, heads;
  int visible;     // context the first token sees; each later token sees one more
  int begin, end;  // this job's part of the context; begin is a multiple of 64
  bool start, finish;
  float scale;
  int key_dim, value_dim;
  // Paged keys and values: the entry of context token c is at
  // page_addresses[page_table[c / 256]] + layer_bytes + (c % 256) * width values.
  const int32_t* page_table;
  const int64_t* page_addresses;
  int64_t layer_bytes;
  int width, key_offset, value_offset;
  int dtype;
  // Expanded MLA: keys are expanded[c - begin] | the entry's rotary part, values follow the keys.
  const float* expanded;  // null: plain
  int64_t expanded_stride;
  int nope_dim;
  float* scratch;  // kThreadScratch bytes
};

constexpr int kAttendRows = 64;  // tokens * heads of a job is at most this (or one token's heads)

struct RopeJob {
  const float* cos;  // [dim / 2] of the token's position
  const float* sin;
  int dim;
  bool interleaved;
};

struct Isa {
  const char* name;
  bool (*supported)();
  const Tiles* tiles;  // null: none

  void (*quantize_int8)(const float* x, int k, int group, Acts out);
  void (*quantize_int16)(const float* x, int k, int16_t* q, float* scale);
  void (*int4_linear)(const Int4Job&, int begin, int end);
  // out[k] = sum over rows r in [first, first + rows) of x[r - first] * W[r, :]
  void (*int4_transposed)(const uint8_t* packed, int k, int group, int first, int rows,
                          const float* x, float* out);
  void (*int8_linear)(const Int8Job&, int begin, int end);  // rows of W
  void (*int8_row)(const int8_t* weight, float scale, int n, float* y);
  void (*dense_linear)(const DenseJob&, int begin, int end);  // rows of W
  void (*dense_transposed)(const float* w, int k, int rows, const float* x, float* out);

  void (*rms_norm)(float* y, const float* x, const float* weight, int n, float eps);
  void (*add_rms_norm)(float* y, float* residual, const float* x, const float* weight, int n,
                       float eps);
  void (*layer_norm)(float* y, const float* x, const float* weight, const float* bias, int n,
                     float eps);
  void (*silu_mul)(float* y, const float* gate, const float* up, int64_t n);
  void (*gelu_tanh)(float* y, const float* x, int64_t n);
  void (*rotate)(float* head, const RopeJob&);
  void (*store_cache)(void* entry, const float* x, int n, int dtype);
  void (*load_cache)(float* x, const void* entry, int n, int dtype);  // n % 16 == 0
  void (*attend)(const AttendJob&);
  // Folds the partial (out, state) of a further part of the context into the first.
  void (*merge)(float* out, float* state, const float* other, const float* other_state, int n);
  void (*scale_row)(float* out, float factor, int n);
  uint64_t (*read)(const uint8_t* data, int64_t bytes);
};

extern const Isa isa_plain, isa_avx2, isa_avx512, isa_amx, isa_neon;

float half_to_float(uint16_t half);

}  // namespace youtu
