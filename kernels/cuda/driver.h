// The CUDA driver, found at run time: no CUDA toolkit is needed to build, nor a GPU.
#ifndef YOUTU_CUDA_DRIVER_H
#define YOUTU_CUDA_DRIVER_H

#include <stdint.h>

#define YOUTU_KERNELS(X)                                                                     \
  X(int4_pack) X(int4_linear_short) X(int4_linear_long) X(int4_linear_norm)                  \
  X(int4_linear_norm_gated) X(int4_gemm_64) X(int4_gemm_128) X(int4_gemm_gated_64)           \
  X(int4_gemm_gated_128) X(int8_linear) X(int8_embed) X(rms_norm) X(layer_norm) X(silu_mul)  \
  X(gelu_tanh) X(argmax) X(argmax_take) X(rope_cache) X(mla_rope_cache) X(cache_gather)      \
  X(gqa_attend_64_1) X(gqa_attend_64_8) X(gqa_attend_128_1) X(gqa_attend_128_8)              \
  X(gqa_attend_256_1) X(gqa_attend_256_8) X(gqa_combine) X(mla_absorb) X(mla_attend)         \
  X(mla_output) X(advance)

enum Kernel {
#define X(name) K_##name,
  YOUTU_KERNELS(X)
#undef X
      NUM_KERNELS
};

// Load the device code for the current context: `isa` names an image ("sm_87", "compute_80"), or
// "" for the best one. Returns a YOUTU_E* code.
int32_t driver_load(const char* isa);

// The image in use; "" before driver_load.
const char* driver_isa();

int32_t driver_num_multiprocessors();

struct Grid {
  int64_t x, y = 1, z = 1;
};

// 0 (also for an empty grid), YOUTU_EINVAL for one too large, or 1000 + CUresult.
int32_t driver_launch(Kernel kernel, Grid grid, int32_t threads, const void* args, void* stream,
                      int32_t shared = 0);

#endif
