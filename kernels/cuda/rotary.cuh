// Rotation of one row, and MLA's cache entry.
#pragma once

#include "common.cuh"

struct Angles {
  const float *cos, *sin;
  int half_dim;
  bool interleaved;
};

static __device__ __forceinline__ Angles angles_of(const RopeArgs& a, int row) {
  const int64_t start = a.step.positions[row] * (a.rope_dim / 2);
  return {a.cos + start, a.sin + start, a.rope_dim / 2, a.interleaved != 0};
}

// Pair i of a head's rotated values, in place.
static __device__ __forceinline__ void rotate_pair(half* head, int i, const Angles& angles) {
  half* first = head + (angles.interleaved ? 2 * i : i);
  half* second = angles.interleaved ? first + 1 : first + angles.half_dim;
  const float x = __half2float(*first), y = __half2float(*second);
  const float c = angles.cos[i], s = angles.sin[i];
  *first = __float2half_rn(x * c - y * s);
  *second = __float2half_rn(y * c + x * s);
}

// Where a row's entry goes; null for the empty rows that fill up a captured batch.
static __device__ __forceinline__ half* row_entry(const RopeArgs& a, int row) {
  const int64_t slot = a.step.slots[row];
  if (slot < 0) return nullptr;
  return entry_of(a.step, slot / YOUTU_PAGE_SIZE, slot % YOUTU_PAGE_SIZE, a.layer);
}

// Normalise (if a.norm), rotate, write. By a whole block of 256.
static __device__ __forceinline__ void write_latent(const RopeArgs& a, int row,
                                                    const Angles& angles, float* shared) {
  const int rank = a.step.cache_width - a.rope_dim;
  const half* latent = static_cast<const half*>(a.latent) + row * a.latent_stride;
  half* entry = row_entry(a, row);
  float scale = 1;
  if (a.norm != nullptr) {
    float sum = 0;
    for (int i = threadIdx.x; i < rank; i += 256) {
      const float v = __half2float(latent[i]);
      sum += v * v;
    }
    scale = rsqrtf(block_sum<8>(sum, shared) / rank + a.eps);
  }
  if (entry == nullptr) return;
  const half* norm = static_cast<const half*>(a.norm);
  for (int i = threadIdx.x; i < rank; i += 256) {
    const float v = __half2float(latent[i]) * scale;
    entry[i] = __float2half_rn(norm ? v * __half2float(norm[i]) : v);
  }
  for (int i = threadIdx.x; i < angles.half_dim; i += 256) {
    const half* key = latent + rank;
    half pair[2];
    const int first = angles.interleaved ? 2 * i : i;
    const int second = angles.interleaved ? first + 1 : first + angles.half_dim;
    const float x = __half2float(key[first]), y = __half2float(key[second]);
    pair[0] = __float2half_rn(x * angles.cos[i] - y * angles.sin[i]);
    pair[1] = __float2half_rn(y * angles.cos[i] + x * angles.sin[i]);
    entry[rank + first] = pair[0], entry[rank + second] = pair[1];
  }
}
