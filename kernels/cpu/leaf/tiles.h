// INT4 linears of many tokens in AMX bf16 tiles. Included after simd/avx512.h.
//
// A tile is 16 rows of 64 bytes. Activations: [token tile][k / 32] of 16 tokens x 32 values.
// Weights, expanded a panel at a time: [row block][k / 32] of 16 pairs of channels x 16 rows.

constexpr int kPanel = 512;     // input channels expanded at a time
constexpr int kTileSize = 512;  // bf16 values
static_assert(kTileTokens * kTileBlocks * 16 * 4 + kTileBlocks * 16 * kPanel * 2 <= kThreadScratch,
              "");

inline __m512i to_bf16(vf v) {  // in the upper halves, to nearest
  return _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
}

void pack_tile_row(const float* x, int k, int row, uint16_t* tiles) {
  uint16_t* out = tiles + static_cast<int64_t>(row / 16) * (k / 32) * kTileSize + row % 16 * 32;
  for (int i = 0; i < k; i += 16) {
    const __m512i v = x ? to_bf16(load(x + i)) : _mm512_setzero_si512();
    _mm256_storeu_si256((__m256i*)(out + i / 32 * kTileSize + i % 32),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
  }
}

// Nibble `i` put into the mantissa of 16.0f: 16 + w without a conversion.
template <int i>
inline vf nibble_plus_16(words v) {
  constexpr int kShift = 19 - 4 * i;
  const __m512i moved = kShift >= 0 ? _mm512_slli_epi32(v, kShift >= 0 ? kShift : 0)
                                    : _mm512_srli_epi32(v, kShift < 0 ? -kShift : 0);
  constexpr int kAndOr = 0xea;  // (a & b) | c
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(moved, _mm512_set1_epi32(0x00780000),
                                                       _mm512_set1_epi32(0x41800000), kAndOr));
}

template <int even, int odd>
inline __m512i expand_pair(words v, vf scale, vf shift) {
  const __m512i a = to_bf16(fma(nibble_plus_16<even>(v), scale, shift));
  const __m512i b = to_bf16(fma(nibble_plus_16<odd>(v), scale, shift));
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(a, 16), b,
                                   _mm512_set1_epi32(static_cast<int>(0xffff0000)), kOrAnd);
}

// One packed block, 16 rows x group -> group / 32 tiles.
inline void expand_block(const uint8_t* w, int group, uint16_t* tiles) {
  const uint8_t* tail = w + kBlockRows * group / 2;
  const vf scale = load_half(reinterpret_cast<const uint16_t*>(tail));
  const vf shift = (splat(-16) - load_u8(tail + 32)) * scale;
  auto* out = reinterpret_cast<__m512i*>(tiles);
  for (int i = 0; i < group / 8; i++, out += 4) {
    const words v = load_words(w + 64 * i);
    _mm512_storeu_si512(out, expand_pair<0, 2>(v, scale, shift));
    _mm512_storeu_si512(out + 1, expand_pair<4, 6>(v, scale, shift));
    _mm512_storeu_si512(out + 2, expand_pair<1, 3>(v, scale, shift));
    _mm512_storeu_si512(out + 3, expand_pair<5, 7>(v, scale, shift));
  }
}

// GCC 12's intrinsics don't say which memory they read and write: without these, stores to a
// buffer just before its tile load are dropped or moved.
#define BARRIER() asm volatile("" ::: "memory")

inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
  BARRIER();
  _tile_loadconfig(&config);
}

// c[2][2] tiles of 16 x 16 floats += a[2] . b[2] over num_k tiles.
inline void multiply_tiles(float* c, const uint16_t* a, int64_t a_step, const uint16_t* b,
                           int64_t b_step, int num_k, bool fresh) {
  BARRIER();
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c, 64);
    _tile_loadd(1, c + 256, 64);
    _tile_loadd(2, c + 512, 64);
    _tile_loadd(3, c + 768, 64);
  }
  for (int i = 0; i < num_k; i++, a += kTileSize, b += kTileSize) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + b_step, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + a_step, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + 256, 64);
  _tile_stored(2, c + 512, 64);
  _tile_stored(3, c + 768, 64);
  BARRIER();
}

// Row blocks [begin, end), at most kTileBlocks.
void tile_linear(const TileJob& job, int begin, int end) {
  const int groups = job.k / job.group, blocks = end - begin;
  const int pairs = (job.tokens + 31) / 32, block_pairs = (blocks + 1) / 2;
  const int64_t block = int4_block_bytes(job.group);
  auto* weights = reinterpret_cast<uint16_t*>(job.scratch);
  float* sums = job.scratch + kTileBlocks * 16 * kPanel / 2;  // [pairs, block_pairs, 2, 2, 16, 16]
  configure_tiles();
  for (int k0 = 0; k0 < job.k; k0 += kPanel) {
    const int width = job.k - k0 < kPanel ? job.k - k0 : kPanel, num_k = width / 32;
    for (int b = 0; b < blocks; b++)
      for (int g = k0 / job.group; g < (k0 + width) / job.group; g++)
        expand_block(job.packed + (static_cast<int64_t>(begin + b) * groups + g) * block, job.group,
                     weights + (static_cast<int64_t>(b) * width + g * job.group - k0) * 16);
    for (int i = 0; i < pairs; i++)
      for (int b = 0; b < block_pairs; b++) {
        const int64_t a_step = static_cast<int64_t>(job.k / 32) * kTileSize;
        const int64_t b_step = 2 * b + 1 < blocks ? static_cast<int64_t>(width) * 16 : 0;
        multiply_tiles(sums + (i * block_pairs + b) * 1024, job.tiles + 2 * i * a_step + k0 * 16,
                       a_step, weights + static_cast<int64_t>(2 * b) * width * 16, b_step, num_k,
                       k0 == 0);
      }
  }
  _tile_release();
  for (int t = 0; t < job.tokens; t++)  // along y's rows, for the TLB's sake
    for (int b = 0; b < blocks; b++) {
      const int row = (begin + b) * kBlockRows, n = job.n - row;
      const __mmask16 mask = n >= kBlockRows ? 0xffff : (1 << n) - 1;
      const vf bias = job.bias ? _mm512_maskz_loadu_ps(mask, job.bias + row) : splat(0);
      const float* tile =
          sums + (t / 32 * block_pairs + b / 2) * 1024 + t / 16 % 2 * 512 + b % 2 * 256;
      _mm512_mask_storeu_ps(job.y + t * job.y_stride + row, mask, load(tile + t % 16 * 16) + bias);
    }
}
