// What differs between a processor and CUDA.

#ifdef __CUDACC_RTC__
#define DEVICE __device__
#define CONSTANT __device__ const
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define __builtin_convertvector(x, T) T(x)
#else
#define DEVICE inline
#define CONSTANT static constexpr
#include <type_traits>
#endif
