// INT4 weights in tile order: see args.h.
#pragma once

#include "common.cuh"

// (q - z) of a word as the fragment a[4]: exact, since halves hold integers up to 2048.
struct Zeros {
  u32 low, high;  // 1024 + z of row g; -(64 + z) of row g + 8
};

static __device__ __forceinline__ Zeros zeros_of(u32 byte) {
  Zeros z;
  z.low = 0x64006400u | (byte & 15) * 0x00010001u;
  // 64 + z is 0x5400 + (z << 4): in [64, 128) a step is 1 / 16
  z.high = 0xd400d400u | (byte >> 4) * 0x00100010u;
  return z;
}

static __device__ __forceinline__ void expand(u32 (&a)[4], u32 word, Zeros z) {
  const half2 low = *reinterpret_cast<const half2*>(&z.low);
  const half2 high = *reinterpret_cast<const half2*>(&z.high);
  const half2 sixteenth = __half2half2(__ushort_as_half(0x2c00));
#pragma unroll
  for (int i = 0; i < 2; i++) {
    u32 even = (word & 0x000f000fu) | 0x64006400u;  // 1024 + q
    u32 odd = (word & 0x00f000f0u) | 0x64006400u;   // 1024 + 16 q
    half2 e = __hsub2(*reinterpret_cast<half2*>(&even), low);
    half2 o = __hfma2(*reinterpret_cast<half2*>(&odd), sixteenth, high);
    a[2 * i] = *reinterpret_cast<u32*>(&e);
    a[2 * i + 1] = *reinterpret_cast<u32*>(&o);
    word >>= 8;
  }
}

// Words of (tile, chunk).
static __device__ __forceinline__ uint4 load_words(const Int4& w, int tile, int chunk) {
  const uint4* p = static_cast<const uint4*>(w.words);
  return load_stream(p + ((int64_t)tile * (w.k / 64) + chunk) * 32 + threadIdx.x % 32);
}

// Where a lane's scales and zeros of (tile, group) are.
static __device__ __forceinline__ int meta_index(const Int4& w, int tile, int group) {
  return (tile * (w.k / GROUP) + group) * 8 + threadIdx.x % 32 / 4;
}
