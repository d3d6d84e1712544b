// All device code, as one module.
#include "linear.cu"
#include "gemm.cu"
#include "tokenwise.cu"
#include "cache.cu"
#include "gqa.cu"
#include "mla.cu"
