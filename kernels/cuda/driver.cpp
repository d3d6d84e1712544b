#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <initializer_list>

#include "args.h"

// --- device code, as compile.py made it

#define IMAGE(arch)                                                                          \
  asm(".section .rodata\n.balign 64\nyoutu_" #arch ": .incbin \"" YOUTU_IMAGE_DIR "/" #arch  \
      ".bin\"\n.previous");                                                                  \
  extern "C" const char youtu_##arch[];
YOUTU_IMAGES
#undef IMAGE

namespace {

struct Image {
  const char* name;
  const char* data;
};

const Image images[] = {
#define IMAGE(arch) {#arch, youtu_##arch},
    YOUTU_IMAGES
#undef IMAGE
};

const char* const kernel_names[NUM_KERNELS] = {
#define X(name) #name,
    YOUTU_KERNELS(X)
#undef X
};

// --- the part of the driver API that we use

using Result = int;  // CUresult: 0 is success
enum { MULTIPROCESSOR_COUNT = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };
enum { MAX_DYNAMIC_SHARED_BYTES = 8, PREFERRED_SHARED_PERCENT = 9 };

struct Attribute {  // CUlaunchAttribute
  int id;
  char pad[4];
  union {
    char bytes[64];
    int value;
  };
};
struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  Attribute* attributes;
  unsigned num_attributes;
};
enum { PROGRAMMATIC_STREAM_SERIALIZATION = 6 };

struct Driver {
  Result (*ctx_get_device)(int*);
  Result (*device_get_attribute)(int*, int, int);
  Result (*module_load_data)(void**, const void*);
  Result (*module_unload)(void*);
  Result (*module_get_function)(void**, void*, const char*);
  Result (*func_set_attribute)(void*, int, int);
  Result (*launch_kernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                          unsigned, void*, void**, void**);
  Result (*launch_kernel_ex)(const LaunchConfig*, void*, void**, void**);  // from 11.8 on
};

Driver driver;
void* module;
void* functions[NUM_KERNELS];
char isa_in_use[16];
int multiprocessors;
bool early_launch;  // the device code calls grid_wait()

template <typename F>
bool find(void* library, F& function, const char* name) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

bool open_driver() {
  if (driver.launch_kernel) return true;
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library) find(library, driver.launch_kernel_ex, "cuLaunchKernelEx");
  return library && find(library, driver.ctx_get_device, "cuCtxGetDevice") &&
         find(library, driver.device_get_attribute, "cuDeviceGetAttribute") &&
         find(library, driver.module_load_data, "cuModuleLoadData") &&
         find(library, driver.module_unload, "cuModuleUnload") &&
         find(library, driver.module_get_function, "cuModuleGetFunction") &&
         find(library, driver.func_set_attribute, "cuFuncSetAttribute") &&
         find(library, driver.launch_kernel, "cuLaunchKernel");
}

const Image* find_image(const char* isa) {
  for (const Image& image : images)
    if (strcmp(image.name, isa) == 0) return &image;
  return nullptr;
}

}  // namespace

int32_t driver_load(const char* isa) {
  int device, major, minor;
  if (!open_driver() || driver.ctx_get_device(&device)) return YOUTU_EUNSUPPORTED;
  if (driver.device_get_attribute(&major, CAPABILITY_MAJOR, device) ||
      driver.device_get_attribute(&minor, CAPABILITY_MINOR, device) ||
      driver.device_get_attribute(&multiprocessors, MULTIPROCESSOR_COUNT, device))
    return YOUTU_EUNSUPPORTED;
  char own[16];
  snprintf(own, sizeof own, "sm_%d%d", major, minor);
  const Image* image = find_image(*isa ? isa : own);
  if (!image && !*isa) image = find_image("compute_80");
  if (!image) return YOUTU_EUNSUPPORTED;
  if (module && strcmp(isa_in_use, image->name) == 0) return YOUTU_OK;
  if (module) driver.module_unload(module);
  module = nullptr;
  isa_in_use[0] = 0;
  if (driver.module_load_data(&module, image->data)) return YOUTU_EUNSUPPORTED;
  for (int i = 0; i < NUM_KERNELS; i++)
    if (driver.module_get_function(&functions[i], module, kernel_names[i])) return YOUTU_EINTERNAL;
  // A multiprocessor must be empty to divide its memory in another way: with one division for all,
  // a kernel's blocks start beside those of the one before. A hint, so what it returns is no matter.
  for (void* function : functions)
    driver.func_set_attribute(function, PREFERRED_SHARED_PERCENT, 50);
  const struct {
    Kernel kernel;
    int bytes;
  } large[] = {{K_mla_attend, ATTEND_SHARED_BYTES},
               {K_int4_linear_norm, MAX_STAGED_SHARED_BYTES},
               {K_int4_linear_norm_gated, MAX_STAGED_SHARED_BYTES}};
  for (const auto& [kernel, bytes] : large)
    if (driver.func_set_attribute(functions[kernel], MAX_DYNAMIC_SHARED_BYTES, bytes))
      return YOUTU_EUNSUPPORTED;
  early_launch = strcmp(image->name, "sm_90") == 0 && driver.launch_kernel_ex;
  snprintf(isa_in_use, sizeof isa_in_use, "%s", image->name);
  return YOUTU_OK;
}

const char* driver_isa() { return isa_in_use; }

int32_t driver_num_multiprocessors() { return multiprocessors; }

int32_t driver_launch(Kernel kernel, Grid grid, int32_t threads, const void* args, void* stream,
                      int32_t shared) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return YOUTU_OK;
  if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) return YOUTU_EINVAL;
  if (!*isa_in_use) return YOUTU_EUNSUPPORTED;
  void* pointers[] = {const_cast<void*>(args)};
  if (early_launch) {
    Attribute attribute = {};
    attribute.id = PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value = 1;
    LaunchConfig config = {};
    config.grid[0] = static_cast<unsigned>(grid.x);
    config.grid[1] = static_cast<unsigned>(grid.y);
    config.grid[2] = static_cast<unsigned>(grid.z);
    config.block[0] = static_cast<unsigned>(threads);
    config.block[1] = config.block[2] = 1;
    config.shared_bytes = static_cast<unsigned>(shared);
    config.stream = stream;
    config.attributes = &attribute;
    config.num_attributes = 1;
    const Result result =
        driver.launch_kernel_ex(&config, functions[kernel], pointers, nullptr);
    return result ? 1000 + result : YOUTU_OK;
  }
  const Result result = driver.launch_kernel(
      functions[kernel], static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
      static_cast<unsigned>(grid.z), static_cast<unsigned>(threads), 1, 1,
      static_cast<unsigned>(shared), stream, pointers, nullptr);
  return result ? 1000 + result : YOUTU_OK;
}
