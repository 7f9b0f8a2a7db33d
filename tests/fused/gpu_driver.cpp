// A driver of a GPU that there is not: it "loads" libraries of the host compiler, and runs their grids on the processor.
//
// It refuses what NVIDIA's refuses: calls without a context, and blocks and grids that are too large.

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

struct Index { unsigned x, y, z; };
typedef void (*Launcher)(Index, Index, void**);

static thread_local std::vector<void*> contexts;
static std::map<std::string, long> launches;
static std::map<void*, std::string> names;
static int next_launch = SUCCESS, local_size = 0;

extern "C" {
// How the bindings find all of the others, of which there are only some.
int cuGetProcAddress_v2(const char* name, void** found, int, unsigned long, void*) {
  void* const own = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *found = dlsym(own, (std::string(name) + "_v2").c_str());
  if (!*found) *found = dlsym(own, name);
  return *found ? SUCCESS : NOT_FOUND;
}
int cuInit(unsigned) { return SUCCESS; }
// NVRTC asks a driver for more than is documented, and does without.
int cuGetExportTable(const void** table, const void*) { return *table = nullptr, NOT_FOUND; }
int cuDeviceGet(int* device, int number) { return *device = number, SUCCESS; }
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = reinterpret_cast<void*>(long(device) + 1);
  return SUCCESS;
}
int cuCtxPushCurrent_v2(void* context) { return contexts.push_back(context), SUCCESS; }
int cuCtxPopCurrent_v2(void** context) {
  if (contexts.empty()) return INVALID_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return SUCCESS;
}
int cuModuleLoadData(void** module, const void* image) {
  if (contexts.empty()) return INVALID_CONTEXT;
  const Elf64_Ehdr* head = static_cast<const Elf64_Ehdr*>(image);
  if (std::memcmp(head->e_ident, ELFMAG, SELFMAG)) return INVALID_IMAGE;
  const size_t size = head->e_shoff + size_t(head->e_shnum) * head->e_shentsize;
  const int file = memfd_create("kernel", 0);
  if (write(file, image, size) != ssize_t(size)) return INVALID_IMAGE;
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!*module) std::fprintf(stderr, "%s\n", dlerror());
  return *module ? SUCCESS : INVALID_IMAGE;  // the file stays open, so that no other is taken for it
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  if (contexts.empty()) return INVALID_CONTEXT;
  *function = dlsym(module, (std::string("launch_") + name).c_str());
  if (!*function) return NOT_FOUND;
  names[*function] = name;
  return SUCCESS;
}
int cuFuncGetAttribute(int* value, int, void* function) { return *value = local_size, names.at(function), SUCCESS; }
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
  if (contexts.empty()) return INVALID_CONTEXT;
  if (!gx || gx > 0x7fffffffu || gy != 1 || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1) return INVALID_VALUE;
  if (shared || extra || !parameters || stream != reinterpret_cast<void*>(7)) return INVALID_VALUE;
  const int status = next_launch;
  next_launch = SUCCESS;
  if (status) return status;
  ++launches[names.at(function)];
  reinterpret_cast<Launcher>(function)({gx, gy, gz}, {bx, by, bz}, parameters);
  return SUCCESS;
}
int cuGetErrorString(int error, const char** words) {
  *words = error == OUT_OF_MEMORY ? "out of memory" : "something is wrong";
  return SUCCESS;
}
int cuGetErrorName(int, const char** words) { return *words = "CUDA_ERROR", SUCCESS; }

// For tests: how often a kernel was launched, a status that the next launch is to have, and what threads work with.
long launched(const char* name) { return launches[name]; }
void fail_next(int status) { next_launch = status; }
void work_with(int bytes) { local_size = bytes; }
}
