// Attention of a block of query rows over a part of the context, over simd/*.h.

constexpr int kTile = 64;  // context tokens whose keys and values are float32 at a time, at most
constexpr int kTileBytes = 24 << 10;  // so that they stay in the first-level cache

inline int tile_tokens(const AttendJob& job) {
  const bool shared = !job.expanded && job.value_offset == job.key_offset;
  const int bytes = 4 * (job.key_dim + (shared ? 0 : job.value_dim));
  int n = kTile;
  while (n > 8 && n * bytes > kTileBytes) n /= 2;
  return n;
}

struct Tile {
  const float *key, *value;
  int key_stride, value_stride;
};

// Context tokens [c, c + n) as float32; a tile never crosses a page.
inline Tile load_tile(const AttendJob& job, int c, int n, float* scratch) {
  const int64_t page = job.page_addresses[job.page_table[c / YOUTU_PAGE_SIZE]] + job.layer_bytes;
  const int64_t size = job.dtype == YOUTU_FLOAT32 ? 4 : 2;
  const auto* entry = reinterpret_cast<const char*>(page) + c % YOUTU_PAGE_SIZE * job.width * size;
  if (job.expanded) {
    const int rope = job.key_dim - job.nope_dim;
    for (int i = 0; i < n; i++) {
      float* key = scratch + i * job.key_dim;
      __builtin_memcpy(key, job.expanded + (c - job.begin + i) * job.expanded_stride,
                       4 * job.nope_dim);
      load_cache(key + job.nope_dim, entry + (i * job.width + job.width - rope) * size, rope,
                 job.dtype);
    }
    const float* value = job.expanded + (c - job.begin) * job.expanded_stride + job.nope_dim;
    return {scratch, value, job.key_dim, static_cast<int>(job.expanded_stride)};
  }
  if (job.dtype == YOUTU_FLOAT32) {
    const auto* f = reinterpret_cast<const float*>(entry);
    return {f + job.key_offset, f + job.value_offset, job.width, job.width};
  }
  const bool shared = job.value_offset == job.key_offset;  // MLA: values are the keys' beginning
  float* values = shared ? scratch : scratch + kTile * job.key_dim;
  for (int i = 0; i < n; i++) {
    const char* e = entry + i * job.width * size;
    load_cache(scratch + i * job.key_dim, e + job.key_offset * size, job.key_dim, job.dtype);
    if (!shared)
      load_cache(values + i * job.value_dim, e + job.value_offset * size, job.value_dim, job.dtype);
  }
  return {scratch, values, job.key_dim, shared ? job.key_dim : job.value_dim};
}

inline const float* query(const AttendJob& job, int row) {
  return job.q + row / job.heads * job.q_stride + row % job.heads * job.q_head_stride;
}
inline float* output(const AttendJob& job, int row) {
  return job.out + row / job.heads * job.out_stride + row % job.heads * job.out_head_stride;
}

// scores[r][j] for R rows, four keys at a time; keys past the tile repeat the last one, unused.
template <int R>
inline void score_rows(const AttendJob& job, const Tile& tile, int row, int n, float* scores) {
  const float* q[R];
  for (int r = 0; r < R; r++) q[r] = query(job, row + r);
  for (int j = 0; j < n; j += 4) {
    const float* k[4];
    for (int i = 0; i < 4; i++) k[i] = tile.key + (j + i < n ? j + i : n - 1) * tile.key_stride;
    vf sum[R][4];
    for (int r = 0; r < R; r++)
      for (int i = 0; i < 4; i++) sum[r][i] = splat(0);
    for (int d = 0; d < job.key_dim; d += W)
      for (int r = 0; r < R; r++) {
        const vf v = load(q[r] + d);
        for (int i = 0; i < 4; i++) sum[r][i] = fma(v, load(k[i] + d), sum[r][i]);
      }
    for (int r = 0; r < R; r++) store_sums(scores + r * kTile + j, sum[r], job.scale);
  }
}

// scores -> exp(scores - maximum); returns what the earlier sums must be scaled by.
inline float soften(float* scores, int n, float* state) {
  for (int j = n; j < (n + W - 1) / W * W; j++) scores[j] = -1e30f;  // counts for 1e-38
  vf high = splat(state[0]), sum = splat(0);
  for (int j = 0; j < n; j += W) high = vmax(high, load(scores + j));
  const float top = hmax(high);
  const float keep = hsum(vexp(splat(state[0] - top))) / W;
  for (int j = 0; j < n; j += W) {
    const vf p = vexp(load(scores + j) - splat(top));
    store(scores + j, p);
    sum = sum + p;
  }
  state[0] = top;
  state[1] = state[1] * keep + hsum(sum);
  return keep;
}

template <int R, int V>
inline void mix_columns(const Tile& tile, int d, int n, const float* scores, const float* keep,
                        float* const* out) {
  vf sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = load(out[r] + d + v * W) * splat(keep[r]);
  for (int j = 0; j < n; j++) {
    const float* value = tile.value + j * tile.value_stride + d;
    for (int r = 0; r < R; r++) {
      const vf p = splat(scores[r * kTile + j]);
      for (int v = 0; v < V; v++) sum[r][v] = fma(p, load(value + v * W), sum[r][v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(out[r] + d + v * W, sum[r][v]);
}

template <int R>
inline void mix_rows(const AttendJob& job, const Tile& tile, int row, int n, const float* scores,
                     const float* keep) {
  float* out[R];
  for (int r = 0; r < R; r++) out[r] = output(job, row + r);
  int d = 0;
  for (; d + 2 * W <= job.value_dim; d += 2 * W) mix_columns<R, 2>(tile, d, n, scores, keep, out);
  for (; d < job.value_dim; d += W) mix_columns<R, 1>(tile, d, n, scores, keep, out);
}

// Rows [row, row + R). They see different numbers of the tile's tokens: a weight past a row's own
// is 0.
template <int R>
inline void attend_rows(const AttendJob& job, const Tile& tile, int row, int c, int n,
                        float* scores) {
  constexpr int kScored = kRegisters < 32 && R > 2 ? 2 : R;  // their sums fit the registers
  float keep[R];
  for (int r = 0; r < R; r += kScored)
    score_rows<kScored>(job, tile, row + r, n, scores + r * kTile);
  for (int r = 0; r < R; r++) {
    const int sees = job.visible + (row + r) / job.heads - c;
    float* mine = scores + r * kTile;
    keep[r] =
        sees > 0 ? soften(mine, sees < n ? sees : n, job.state + (row + r) * job.state_stride) : 1;
    for (int j = sees > 0 ? sees : 0; j < n; j++) mine[j] = 0;
  }
  mix_rows<R>(job, tile, row, n, scores, keep);
}

// Rows [r, rows): R at a time, then fewer.
template <int R>
inline void attend_block(const AttendJob& job, const Tile& tile, int r, int rows, int c, int n,
                         float* scores) {
  for (; r + R <= rows; r += R) attend_rows<R>(job, tile, r, c, n, scores);
  if constexpr (R > 1) attend_block<R / 2>(job, tile, r, rows, c, n, scores);
}

void attend(const AttendJob& job) {
  const int rows = job.tokens * job.heads;
  if (job.start)
    for (int r = 0; r < rows; r++) {
      float* out = output(job, r);
      for (int d = 0; d < job.value_dim; d++) out[d] = 0;
      job.state[r * job.state_stride] = -1e30f;
      job.state[r * job.state_stride + 1] = 0;
    }
  float* scores = job.scratch;  // [4, kTile]
  float* floats = job.scratch + 4 * kTile;
  int end = job.visible + job.tokens - 1;
  if (job.end < end) end = job.end;
  const int step = tile_tokens(job);
  for (int c = job.begin; c < end; c += step) {
    const int n = end - c < step ? end - c : step;
    const Tile tile = load_tile(job, c, n, floats);
    attend_block<4>(job, tile, 0, rows, c, n, scores);
  }
  if (job.finish)
    for (int r = 0; r < rows; r++)
      scale_row(output(job, r), 1.0f / job.state[r * job.state_stride + 1], job.value_dim);
}

void merge(float* out, float* state, const float* other, const float* other_state, int n) {
  const float top = state[0] > other_state[0] ? state[0] : other_state[0];
  const vf mine = vexp(splat(state[0] - top)), theirs = vexp(splat(other_state[0] - top));
  for (int i = 0; i < n; i += W) store(out + i, fma(load(out + i), mine, load(other + i) * theirs));
  state[1] = hsum(vf(splat(state[1]) * mine + splat(other_state[1]) * theirs)) / W;
  state[0] = top;
}
