#include <algorithm>

#include "engine.h"

namespace youtu {
namespace {

// Queries over a paged cache, cut into tasks: (sequence, stream of keys, block of tokens, split
// of the context). Splits depend on the sequence alone, so its result doesn't depend on the batch.
struct Plan {
  const youtu_step* step;
  int first_seq, last_seq;
  int streams, heads;  // heads: query heads that share a stream
  int key_dim, value_dim, key_offset, value_offset, stream_step;  // stream_step: in key/value heads
  int layer;
  int min_split;
  float scale;
  const float* q;  // row of the first token of first_seq
  int64_t q_stride;
  float* out;
  int64_t out_stride;
};

constexpr int kMostSplits = 32;
constexpr int kSplitQueries = 8;  // longer chunks have enough blocks to share out

struct Shape {
  int tokens, context, block_tokens, blocks, split, splits;
};

Shape shape_of(const Plan& plan, int s) {
  Shape shape{};
  shape.tokens = plan.step->query_start[s + 1] - plan.step->query_start[s];
  shape.context = plan.step->context_len[s];
  shape.block_tokens = std::max(1, kAttendRows / plan.heads);
  shape.blocks = (shape.tokens + shape.block_tokens - 1) / shape.block_tokens;
  shape.split = shape.context;
  shape.splits = 1;
  if (shape.tokens <= kSplitQueries) {
    const int even = (shape.context + kMostSplits - 1) / kMostSplits;
    shape.split = (std::max(even, plan.min_split) + 63) / 64 * 64;
    shape.splits = std::max(1, (shape.context + shape.split - 1) / shape.split);
  }
  return shape;
}

struct Task {
  int s, block, stream, split;
  int group;  // the first task of the splits that belong together
};

Task find_task(const Plan& plan, int index, bool by_group) {
  int group = 0;
  for (int s = plan.first_seq;; s++) {
    const Shape shape = shape_of(plan, s);
    const int splits = by_group ? 1 : shape.splits;
    const int count = shape.blocks * plan.streams * splits;
    if (index < count) {
      const int local = index / splits;
      return {s, local / plan.streams, local % plan.streams, index % splits,
              group + local * shape.splits};
    }
    index -= count;
    group += shape.blocks * plan.streams * shape.splits;
  }
}

AttendJob make_job(const Plan& plan, const Task& task, const Shape& shape) {
  const youtu_step& step = *plan.step;
  const int t0 = task.block * shape.block_tokens;
  const int64_t row = step.query_start[task.s] - step.query_start[plan.first_seq] + t0;
  AttendJob job{};
  job.q =
      plan.q + row * plan.q_stride + static_cast<int64_t>(task.stream) * plan.heads * plan.key_dim;
  job.q_stride = plan.q_stride;
  job.q_head_stride = plan.key_dim;
  job.out = plan.out + row * plan.out_stride +
            static_cast<int64_t>(task.stream) * plan.heads * plan.value_dim;
  job.out_stride = plan.out_stride;
  job.out_head_stride = plan.value_dim;
  job.state_stride = 2;
  job.tokens = std::min(shape.block_tokens, shape.tokens - t0);
  job.heads = plan.heads;
  job.visible = shape.context - shape.tokens + t0 + 1;
  job.begin = task.split * shape.split;
  job.end = std::min(shape.context, job.begin + shape.split);
  job.start = true;
  job.finish = shape.splits == 1;
  job.scale = plan.scale;
  job.key_dim = plan.key_dim;
  job.value_dim = plan.value_dim;
  job.page_table = step.page_table + static_cast<int64_t>(task.s) * step.table_width;
  job.page_addresses = step.page_addresses;
  job.layer_bytes = layer_bytes(step, plan.layer);
  job.width = step.cache_width;
  job.key_offset = plan.key_offset + task.stream * plan.stream_step;
  job.value_offset = plan.value_offset + task.stream * plan.stream_step;
  job.dtype = step.cache_dtype;
  return job;
}

// A split's result: [rows, value_dim] then the states [rows, 2].
int64_t partial_floats(const Plan& plan) {
  const int rows = std::max(1, kAttendRows / plan.heads) * plan.heads;
  return static_cast<int64_t>(rows) * (plan.value_dim + 2);
}

void run_tasks(const Plan& plan, int num_tasks, int num_groups, float* partials) {
  const int64_t size = partial_floats(plan);
  const int64_t rows = size / (plan.value_dim + 2);
  parallel(num_tasks, [&](int index, int thread) {
    const Task task = find_task(plan, index, false);
    const Shape shape = shape_of(plan, task.s);
    AttendJob job = make_job(plan, task, shape);
    job.scratch = engine.thread_scratch(thread);
    float state[2 * kAttendRows > 512 ? 2 * kAttendRows : 512];
    job.state = state;
    if (shape.splits > 1) {
      job.out = partials + index * size;
      job.out_stride = static_cast<int64_t>(plan.heads) * plan.value_dim;
      job.state = job.out + rows * plan.value_dim;
    }
    engine.isa->attend(job);
  });
  if (num_groups == num_tasks) return;
  parallel(num_groups, [&](int index, int) {
    const Task task = find_task(plan, index, true);
    const Shape shape = shape_of(plan, task.s);
    if (shape.splits == 1) return;
    const AttendJob job = make_job(plan, task, shape);
    for (int r = 0; r < job.tokens * job.heads; r++) {
      float* sum = partials + task.group * size + static_cast<int64_t>(r) * plan.value_dim;
      float* state = partials + task.group * size + rows * plan.value_dim + 2 * r;
      for (int i = 1; i < shape.splits; i++)
        engine.isa->merge(sum, state, sum + i * size, state + i * size, plan.value_dim);
      float* out = job.out + r / job.heads * job.out_stride + r % job.heads * job.out_head_stride;
      for (int d = 0; d < plan.value_dim; d++) out[d] = sum[d] / state[1];
    }
  });
}

// Runs sequences [first, last), as many at a time as have room for their splits.
int32_t run_paged(Plan plan, int first, int last, Arena arena) {
  const youtu_step& step = *plan.step;
  const float* q = plan.q;
  float* out = plan.out;
  const int start = step.query_start[first];
  for (int s = first; s < last;) {
    plan.first_seq = s;
    int tasks = 0, groups = 0;
    for (plan.last_seq = s; plan.last_seq < last; plan.last_seq++) {
      const Shape shape = shape_of(plan, plan.last_seq);
      const int more = shape.blocks * plan.streams * shape.splits;
      const int64_t bytes = (tasks + more) * partial_floats(plan) * 4;
      if ((shape.splits > 1 || tasks != groups) && bytes > arena.left()) break;
      tasks += more;
      groups += shape.blocks * plan.streams;
    }
    if (plan.last_seq == s) return YOUTU_EINVAL;
    const int64_t row = step.query_start[s] - start;
    plan.q = q + row * plan.q_stride;
    plan.out = out + row * plan.out_stride;
    run_tasks(plan, tasks, groups, arena.take<float>(0));
    s = plan.last_seq;
  }
  return YOUTU_OK;
}

}  // namespace
}  // namespace youtu

using namespace youtu;

int32_t youtu_gqa_attention(void* out, const void* q, int64_t q_stride, const youtu_step* step,
                            int32_t num_heads, int32_t num_kv_heads, int32_t head_dim,
                            int32_t layer, float scale, void*) {
  if (num_kv_heads <= 0 || num_heads % num_kv_heads || num_heads / num_kv_heads > kAttendRows ||
      head_dim % 16 || head_dim > 256 || step->cache_width != 2 * num_kv_heads * head_dim)
    return YOUTU_EINVAL;
  Plan plan{};
  plan.step = step;
  plan.streams = num_kv_heads;
  plan.heads = num_heads / num_kv_heads;
  plan.key_dim = plan.value_dim = plan.stream_step = head_dim;
  plan.key_offset = 0;
  plan.value_offset = num_kv_heads * head_dim;
  plan.layer = layer;
  plan.min_split = 256;
  plan.scale = scale;
  plan.q = static_cast<const float*>(q);
  plan.q_stride = q_stride;
  plan.out = static_cast<float*>(out);
  plan.out_stride = static_cast<int64_t>(num_heads) * head_dim;
  return run_paged(plan, 0, step->num_seqs, Arena());
}

// --- MLA

namespace {

// New tokens from which expanding the context's keys and values pays (DESIGN §6).
constexpr int kExpandTokens = 171;

struct Mla {
  const youtu_step* step;
  const void* kv_b;  // packed INT4, or floats if group is 0
  int group, heads, nope, rope, v_dim, rank, layer;
  float scale;
  const float* q;
  float* out;

  int rows() const { return heads * (nope + v_dim); }
  int q_dim() const { return nope + rope; }
};

int query_len(const youtu_step& step, int s) {
  return step.query_start[s + 1] - step.query_start[s];
}

int64_t absorbed_bytes(const Mla& m) {  // a token's
  const int64_t latent = static_cast<int64_t>(m.heads) * (2 * m.rank + m.rope) * 4;
  return latent + (m.group ? m.heads * acts_bytes(m.rank, m.group) : 0);
}

// latent[rank] = x[nope] . the `nope` rows of kv_b from `row` on
void absorb(const Mla& m, int row, const float* x, float* latent) {
  if (m.group)
    engine.isa->int4_transposed(static_cast<const uint8_t*>(m.kv_b), m.rank, m.group, row, m.nope,
                                x, latent);
  else
    engine.isa->dense_transposed(
        static_cast<const float*>(m.kv_b) + static_cast<int64_t>(row) * m.rank, m.rank, m.nope, x,
        latent);
}

// A head's attended latents [tokens, heads, rank] through its value rows -> out [tokens, heads, v].
void project(const Mla& m, int head, int tokens, const float* mixed, const Acts& acts, float* out) {
  const int first_row = head * (m.nope + m.v_dim) + m.nope;
  const int64_t y_stride = static_cast<int64_t>(m.heads) * m.v_dim;
  if (!m.group) {
    DenseJob job{};
    job.weight = static_cast<const float*>(m.kv_b);
    job.k = m.rank;
    job.x = mixed + static_cast<int64_t>(head) * m.rank;
    job.x_stride = static_cast<int64_t>(m.heads) * m.rank;
    job.y = out + head * m.v_dim;
    job.y_stride = y_stride;
    job.tokens = tokens;
    job.first_row = first_row;
    engine.isa->dense_linear(job, first_row, first_row + m.v_dim);
    return;
  }
  for (int t = 0; t < tokens; t++) {
    const int64_t row = static_cast<int64_t>(t) * m.heads + head;
    engine.isa->quantize_int8(mixed + row * m.rank, m.rank, m.group,
                              acts_row(acts, row, m.rank, m.group));
  }
  Int4Job job{};
  job.packed = static_cast<const uint8_t*>(m.kv_b);
  job.n = m.rows(), job.k = m.rank, job.group = m.group;
  job.acts = acts_row(acts, head, m.rank, m.group);
  job.row_step = m.heads;
  job.first_row = first_row;
  job.y = out + head * m.v_dim;
  job.y_stride = y_stride;
  job.tokens = tokens;
  engine.isa->int4_linear(job, first_row / kBlockRows, (first_row + m.v_dim) / kBlockRows);
}

// The queries move into the latent space, attend there, and the sums come back through W_v.
int32_t mla_absorbed(const Mla& m, int first, int last) {
  const youtu_step& step = *m.step;
  const int start = step.query_start[first], tokens = step.query_start[last] - start;
  const int wide = m.rank + m.rope;
  Arena arena;
  auto* q = arena.take<float>(static_cast<int64_t>(tokens) * m.heads * wide);
  auto* mixed = arena.take<float>(static_cast<int64_t>(tokens) * m.heads * m.rank);
  const Acts acts =
      m.group ? take_acts(arena, static_cast<int64_t>(tokens) * m.heads, m.rank, m.group) : Acts{};
  const int head_rows = m.nope + m.v_dim;
  parallel(tokens * m.heads, [&](int i, int) {
    const int head = i / tokens, t = i % tokens;  // a head's weights stay in cache for its tokens
    const float* from = m.q + (static_cast<int64_t>(start + t) * m.heads + head) * m.q_dim();
    float* to = q + (static_cast<int64_t>(t) * m.heads + head) * wide;
    absorb(m, head * head_rows, from, to);
    std::copy(from + m.nope, from + m.q_dim(), to + m.rank);
  });
  Plan plan{};
  plan.step = &step;
  plan.streams = 1;
  plan.heads = m.heads;
  plan.key_dim = wide;
  plan.value_dim = m.rank;
  plan.layer = m.layer;
  plan.min_split = 64;
  plan.scale = m.scale;
  plan.q = q;
  plan.q_stride = static_cast<int64_t>(m.heads) * wide;
  plan.out = mixed;
  plan.out_stride = static_cast<int64_t>(m.heads) * m.rank;
  if (const int32_t error = run_paged(plan, first, last, arena)) return error;
  parallel(m.heads, [&](int head, int) {
    project(m, head, tokens, mixed, acts, m.out + static_cast<int64_t>(start) * m.heads * m.v_dim);
  });
  return YOUTU_OK;
}

// A page of the context at a time: its keys and values are expanded for all heads, and every
// query row goes over them, its sums staying in `out` until the last page.
int32_t mla_expanded(const Mla& m, int s) {
  const youtu_step& step = *m.step;
  const int start = step.query_start[s], tokens = query_len(step, s), context = step.context_len[s];
  constexpr int kPage = YOUTU_PAGE_SIZE, kBlock = kAttendRows;
  Arena arena;
  auto* latent = arena.take<float>(static_cast<int64_t>(kPage) * m.rank);
  auto* expanded = arena.take<float>(static_cast<int64_t>(kPage) * m.rows());
  auto* state = arena.take<float>(2 * static_cast<int64_t>(tokens) * m.heads);
  if (arena.left() < 1 << 20) return YOUTU_EINVAL;
  const int blocks = (tokens + kBlock - 1) / kBlock;
  for (int begin = 0; begin < context; begin += kPage) {
    const int n = std::min(kPage, context - begin);
    AttendJob job{};
    job.page_table = step.page_table + static_cast<int64_t>(s) * step.table_width;
    job.page_addresses = step.page_addresses;
    job.layer_bytes = layer_bytes(step, m.layer);
    job.width = step.cache_width;
    job.dtype = step.cache_dtype;
    const char* page =
        reinterpret_cast<const char*>(step.page_addresses[job.page_table[begin / kPage]]) +
        job.layer_bytes;
    parallel_rows(n, m.rank, [&](int i, int) {
      engine.isa->load_cache(latent + static_cast<int64_t>(i) * m.rank,
                             page + i * step.cache_width * cache_value_bytes(step), m.rank,
                             step.cache_dtype);
    });
    if (m.group)
      int4_linear({latent, m.rank, static_cast<const uint8_t*>(m.kv_b), nullptr, expanded, n,
                   m.rows(), m.rank, m.group},
                  arena);
    else
      youtu_dense_linear(expanded, latent, m.kv_b, nullptr, n, m.rows(), m.rank, m.rank, nullptr);
    parallel(blocks * m.heads, [&](int i, int thread) {
      const int head = i % m.heads, t0 = i / m.heads * kBlock;
      const int64_t row = start + t0;
      AttendJob mine = job;
      mine.q = m.q + (row * m.heads + head) * m.q_dim();
      mine.q_stride = static_cast<int64_t>(m.heads) * m.q_dim();
      mine.out = m.out + (row * m.heads + head) * m.v_dim;
      mine.out_stride = static_cast<int64_t>(m.heads) * m.v_dim;
      mine.state = state + (static_cast<int64_t>(t0) * m.heads + head) * 2;
      mine.state_stride = 2 * m.heads;
      mine.tokens = std::min(kBlock, tokens - t0);
      mine.heads = 1;
      mine.visible = context - tokens + t0 + 1;
      mine.begin = begin;
      mine.end = begin + n;
      mine.start = begin == 0;
      mine.finish = begin + n == context;
      mine.scale = m.scale;
      mine.key_dim = m.q_dim();
      mine.value_dim = m.v_dim;
      mine.expanded = expanded + head * (m.nope + m.v_dim);
      mine.expanded_stride = m.rows();
      mine.nope_dim = m.nope;
      mine.scratch = engine.thread_scratch(thread);
      engine.isa->attend(mine);
    });
  }
  return YOUTU_OK;
}

}  // namespace

int32_t youtu_mla_attention(const youtu_mla_attention_args* args, const youtu_step* step, void*) {
  const youtu_mla_attention_args& a = *args;
  if (a.nope_dim % 16 || a.rope_dim % 16 || a.v_dim % 16 || a.rank % 16 ||
      (a.group && a.rank % a.group) || a.num_heads > kAttendRows || a.rank + a.rope_dim > 1024 ||
      step->cache_width != a.rank + a.rope_dim)
    return YOUTU_EINVAL;
  Mla m{};
  m.step = step;
  m.kv_b = a.kv_b;
  m.group = a.group, m.heads = a.num_heads, m.nope = a.nope_dim, m.rope = a.rope_dim;
  m.v_dim = a.v_dim, m.rank = a.rank, m.layer = a.layer;
  m.scale = a.scale;
  m.q = static_cast<const float*>(a.q);
  m.out = static_cast<float*>(a.out);
  const auto most = static_cast<int>(kSharedBytes / 2 / absorbed_bytes(m));
  for (int s = 0; s < step->num_seqs;) {
    if (query_len(*step, s) > std::min(kExpandTokens, most)) {
      if (const int32_t error = mla_expanded(m, s++)) return error;
      continue;
    }
    int last = s, tokens = 0;
    while (last < step->num_seqs && query_len(*step, last) <= kExpandTokens &&
           tokens + query_len(*step, last) <= most)
      tokens += query_len(*step, last++);
    if (const int32_t error = mla_absorbed(m, s, last)) return error;
    s = last;
  }
  return YOUTU_OK;
}
