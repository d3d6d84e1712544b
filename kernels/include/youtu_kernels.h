/* The only contract between Python and the native kernels.
 *
 * Plain C ABI, called through ctypes. Every function returns 0 or a YOUTU_E* code; none
 * allocates, none reads the environment (youtu_init excepted), none keeps a pointer.
 * The last argument is the stream (CUstream on CUDA, ignored on the CPU).
 * Shapes are row-major. `T` is the number of tokens (rows) of a step.
 */
#ifndef YOUTU_KERNELS_H
#define YOUTU_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define YOUTU_KERNELS_ABI 1
#define YOUTU_OK 0
#define YOUTU_EINVAL 1      /* a shape or pointer the kernel does not take */
#define YOUTU_EUNSUPPORTED 2 /* the machine lacks what was asked for */
#define YOUTU_EINTERNAL 3   /* a self-test failed */

#define YOUTU_API __attribute__((visibility("default")))

YOUTU_API int32_t youtu_abi(void);

#ifdef __cplusplus
}
#endif
#endif
