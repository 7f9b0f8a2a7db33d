// CUDA for the host compiler: what kernels use of it, and functions that run a grid, thread after thread.

#include <cmath>
#include <cstdlib>
#include <cstring>

using std::acos; using std::acosh; using std::asin; using std::asinh; using std::atan; using std::atan2; using std::atanh;
using std::ceil; using std::copysign; using std::cos; using std::cosh; using std::erf; using std::erfc; using std::exp;
using std::exp2; using std::expm1; using std::fabs; using std::floor; using std::fmax; using std::fmin; using std::fmod;
using std::hypot; using std::lgamma; using std::log; using std::log10; using std::log1p; using std::log2;
using std::nearbyint; using std::nextafter; using std::pow; using std::sin; using std::sinh; using std::sqrt;
using std::tan; using std::tanh; using std::trunc;

#undef INFINITY
#undef INT64_MAX
#undef INT64_MIN
#undef NAN
#undef __x86_64__
#undef __AVX512F__
#undef __AVX2__
#define __CUDACC_RTC__
#define __CUDA_ARCH__ 900
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __noinline__ __attribute__((noinline))
#define int64_t kernel_int64_t
#define int32_t kernel_int32_t

struct Index { unsigned x, y, z; };
static thread_local Index blockIdx, threadIdx, blockDim, gridDim;

static inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// What the driver calls in the place of a kernel of one parameter.
#define LAUNCHER(name, Call)                                                     \
  extern "C" void launch_##name(Index grid, Index block, void** parameters) {    \
    gridDim = grid;                                                              \
    blockDim = block;                                                            \
    for (unsigned b = 0; b < grid.x; ++b)                                        \
      for (unsigned i = 0; i < block.x; ++i) {                                   \
        blockIdx.x = b;                                                          \
        threadIdx.x = i;                                                         \
        name(*static_cast<const Call*>(parameters[0]));                          \
      }                                                                          \
  }
