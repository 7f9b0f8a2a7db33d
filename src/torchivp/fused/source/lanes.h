// Numbers of several rows side by side: W lanes of a vector register, or plain numbers for W = 1.
//
// Everything below the shells is written once, for any W. A CUDA thread, and a single row, have W = 1.

#ifdef __CUDACC_RTC__
typedef long long int64_t;
typedef int int32_t;
#define INT64_MAX 0x7fffffffffffffffLL
#define INT64_MIN (-INT64_MAX - 1)
#define FUSED __device__ inline
#define CALLED __device__ __noinline__
#define LARGE CALLED  // NVRTC would take half a minute over a network that is written out at every call
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#define FUSED static inline __attribute__((always_inline))
#define CALLED static __attribute__((noinline))
#define LARGE FUSED
#endif

template <int W> struct Lanes;

template <> struct Lanes<1> {
  typedef real R;
  typedef double D;
  typedef bool M;
  typedef bool MD;
  typedef int64_t I;
};

#ifndef __CUDACC_RTC__
template <int W> struct Lanes {
  typedef real R __attribute__((vector_size(W * sizeof(real))));
  typedef double D __attribute__((vector_size(W * sizeof(double))));
  typedef std::conditional_t<sizeof(real) == 8, int64_t, int32_t> truth;  // what comparisons give
  typedef truth M __attribute__((vector_size(W * sizeof(truth))));
  typedef int64_t MD __attribute__((vector_size(W * sizeof(int64_t))));
  typedef int64_t I __attribute__((vector_size(W * sizeof(int64_t))));
};
#endif

#if defined(__x86_64__)
// Registers as the compiler knows them. The header of all their instructions takes a third of the time in which a kernel
// compiles, for two of them.
typedef double Doubles8 __attribute__((vector_size(64)));
typedef float Floats16 __attribute__((vector_size(64)));
typedef double Doubles4 __attribute__((vector_size(32)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef int64_t Ints8 __attribute__((vector_size(64)));
#endif

FUSED double spacing(double t) { return nextafter(fabs(t), double(INFINITY)) - fabs(t); }

// --- one lane --------------------------------------------------------------------------------------------------------

template <class V, class S> FUSED void put(V& v, int l, S x) { reinterpret_cast<S*>(&v)[l] = x; }

template <int W> FUSED real at(const typename Lanes<W>::R& v, int l) { return reinterpret_cast<const real*>(&v)[l]; }
template <int W> FUSED double at_d(const typename Lanes<W>::D& v, int l) {
  return reinterpret_cast<const double*>(&v)[l];
}

// --- the same in all lanes -------------------------------------------------------------------------------------------

template <int W> FUSED typename Lanes<W>::R up(real x) {
  if constexpr (W == 1) return x;
  else return x - typename Lanes<W>::R{};
}
template <int W> FUSED typename Lanes<W>::D up_d(double x) {
  if constexpr (W == 1) return x;
  else return x - typename Lanes<W>::D{};
}
template <int W> FUSED typename Lanes<W>::M up_m(bool x) {
  if constexpr (W == 1) return x;
  else return x ? ~typename Lanes<W>::M{} : typename Lanes<W>::M{};
}
template <int W> FUSED typename Lanes<W>::I up_i(int64_t x) {
  if constexpr (W == 1) return x;
  else return x + typename Lanes<W>::I{};
}

// --- from one kind of number to another ------------------------------------------------------------------------------

#define CONVERSION(name, from, to)                                                                   \
  template <int W> FUSED typename Lanes<W>::to name(const typename Lanes<W>::from& x) {              \
    if constexpr (W == 1) return (typename Lanes<W>::to)x;                                           \
    else return __builtin_convertvector(x, typename Lanes<W>::to);                                   \
  }
CONVERSION(to_real, D, R)
CONVERSION(to_double, R, D)
CONVERSION(int_to_real, I, R)
CONVERSION(real_to_int, R, I)
CONVERSION(narrow, MD, M)
CONVERSION(widen, M, MD)

// --- choices ---------------------------------------------------------------------------------------------------------

template <class M, class V> FUSED V sel(const M& m, const V& a, const V& b) { return m ? a : b; }

FUSED bool neg(bool m) { return !m; }
FUSED bool neg(int m) { return !m; }  // of truths combined, which C++ makes a number
template <class M> FUSED M neg(const M& m) { return ~m; }

template <int W, class M> FUSED bool any(const M& m) {
  if constexpr (W == 1) return m;
#ifndef __CUDACC_RTC__
  else {
#if defined(__AVX512F__)
    Ints8 part[sizeof(M) / 64];
    std::memcpy(part, &m, sizeof m);
    unsigned char found;
    asm("vptestmq %1, %1, %0" : "=k"(found) : "v"(sizeof(M) == 64 ? part[0] : part[0] | part[sizeof(M) / 64 - 1]));
    return found != 0;
#else
    int64_t part[sizeof(M) / 8], found = 0;
    std::memcpy(part, &m, sizeof m);
    for (int64_t p : part) found |= p;
    return found != 0;
#endif
  }
#endif
}
template <int W, class M> FUSED bool is_set(const M& m, int l) {
  if constexpr (W == 1) return m;
  else return m[l] != 0;
}
template <int W, class M> FUSED void set_lane(M& m, int l, bool x) {
  if constexpr (W == 1) m = x;
  else m[l] = x ? -1 : 0;
}

// --- functions -------------------------------------------------------------------------------------------------------
// Those of the vector library of glibc, where there is one, else lane by lane.

#if defined(TORCHIVP_LIBMVEC) && defined(__AVX512F__)
#define VECTOR_FUNCTION(name)                                                                        \
  extern "C" Doubles8 _ZGVeN8v_##name(Doubles8);                                                     \
  extern "C" Floats16 _ZGVeN16v_##name##f(Floats16);                                                 \
  FUSED Doubles8 vector_##name(Doubles8 x) { return _ZGVeN8v_##name(x); }                            \
  FUSED Floats16 vector_##name(Floats16 x) { return _ZGVeN16v_##name##f(x); }
#elif defined(TORCHIVP_LIBMVEC) && defined(__AVX2__)
#define VECTOR_FUNCTION(name)                                                                        \
  extern "C" Doubles4 _ZGVdN4v_##name(Doubles4);                                                     \
  extern "C" Floats8 _ZGVdN8v_##name##f(Floats8);                                                    \
  template <class V> FUSED V vector_##name(const V& x) {                                             \
    struct Halves { std::conditional_t<sizeof(real) == 8, Doubles4, Floats8> half[2]; };             \
    Halves h;                                                                                        \
    std::memcpy(&h, &x, sizeof h);                                                                   \
    if constexpr (sizeof(real) == 8) for (auto& half : h.half) half = _ZGVdN4v_##name(half);         \
    else for (auto& half : h.half) half = _ZGVdN8v_##name##f(half);                                  \
    V y;                                                                                             \
    std::memcpy(&y, &h, sizeof y);                                                                   \
    return y;                                                                                        \
  }
#else
#define VECTOR_FUNCTION(name)                                                                        \
  template <class V> FUSED V vector_##name(V x) {                                                    \
    for (unsigned l = 0; l < sizeof(V) / sizeof(real); ++l) x[l] = std::name(real(x[l]));            \
    return x;                                                                                        \
  }
#endif

#ifdef __CUDACC_RTC__
#define FUNCTION(name)                                                                               \
  template <int W> FUSED real f_##name(real x) { return name(x); }
#define LANE_FUNCTION(name, expression)                                                              \
  template <int W> FUSED real f_##name(real x) { return expression; }
#else
#define FUNCTION(name)                                                                               \
  VECTOR_FUNCTION(name)                                                                              \
  template <int W> FUSED typename Lanes<W>::R f_##name(const typename Lanes<W>::R& x) {              \
    if constexpr (W == 1) return std::name(x);                                                       \
    else return (typename Lanes<W>::R)vector_##name(x);                                              \
  }
#define LANE_FUNCTION(name, expression)                                                              \
  template <int W> FUSED typename Lanes<W>::R f_##name(const typename Lanes<W>::R& v) {              \
    auto one = [](real x) -> real { return expression; };                                            \
    if constexpr (W == 1) return one(v);                                                             \
    else {                                                                                           \
      typename Lanes<W>::R y;                                                                        \
      for (int l = 0; l < W; ++l) y[l] = one(v[l]);                                                  \
      return y;                                                                                      \
    }                                                                                                \
  }
using std::floor; using std::ceil; using std::trunc; using std::nearbyint; using std::sqrt; using std::fabs;
using std::lgamma; using std::copysign; using std::atan2; using std::hypot; using std::fmod;
#endif

FUNCTION(exp)
FUNCTION(log)
FUNCTION(sin)
FUNCTION(cos)
FUNCTION(tan)
FUNCTION(asin)
FUNCTION(acos)
FUNCTION(atan)
FUNCTION(sinh)
FUNCTION(cosh)
FUNCTION(tanh)
FUNCTION(asinh)
FUNCTION(acosh)
FUNCTION(atanh)
FUNCTION(expm1)
FUNCTION(log1p)
FUNCTION(exp2)
FUNCTION(log2)
FUNCTION(log10)
FUNCTION(erf)
FUNCTION(erfc)
#if defined(__AVX512F__)
FUSED Doubles8 vector_sqrt(Doubles8 x) {
  Doubles8 root;
  asm("vsqrtpd %1, %0" : "=v"(root) : "v"(x));
  return root;
}
FUSED Floats16 vector_sqrt(Floats16 x) {
  Floats16 root;
  asm("vsqrtps %1, %0" : "=v"(root) : "v"(x));
  return root;
}
template <int W> FUSED typename Lanes<W>::R f_sqrt(const typename Lanes<W>::R& x) {
  if constexpr (W == 1) return std::sqrt(x);
  else return (typename Lanes<W>::R)vector_sqrt(x);
}
#else
LANE_FUNCTION(sqrt, sqrt(x))
#endif
LANE_FUNCTION(floor, floor(x))
LANE_FUNCTION(ceil, ceil(x))
LANE_FUNCTION(trunc, trunc(x))
LANE_FUNCTION(round, nearbyint(x))
LANE_FUNCTION(lgamma, lgamma(x))

template <int W> FUSED typename Lanes<W>::R f_abs(const typename Lanes<W>::R& x) {
  if constexpr (W == 1) return fabs(x);
  else return sel(x < 0, -x, x + 0);  // of -0.0 too
}
template <int W> FUSED typename Lanes<W>::D abs_d(const typename Lanes<W>::D& x) {
  if constexpr (W == 1) return fabs(x);
  else return sel(x < 0, -x, x);
}
// As torch has them: what is not a number wins.
template <int W> FUSED typename Lanes<W>::R f_max(const typename Lanes<W>::R& a, const typename Lanes<W>::R& b) {
  return sel((a > b) | (a != a), a, b);
}
template <int W> FUSED typename Lanes<W>::R f_min(const typename Lanes<W>::R& a, const typename Lanes<W>::R& b) {
  return sel((a < b) | (a != a), a, b);
}
// And where what is not a number loses.
template <int W> FUSED typename Lanes<W>::R f_fmax(const typename Lanes<W>::R& a, const typename Lanes<W>::R& b) {
  return sel((a > b) | (b != b), a, b);
}
template <int W> FUSED typename Lanes<W>::R f_fmin(const typename Lanes<W>::R& a, const typename Lanes<W>::R& b) {
  return sel((a < b) | (b != b), a, b);
}
#define PAIR_FUNCTION(name)                                                                          \
  template <int W> FUSED typename Lanes<W>::R f_##name(                                              \
      const typename Lanes<W>::R& x, const typename Lanes<W>::R& y) {                                \
    typename Lanes<W>::R z = x;                                                                      \
    for (int l = 0; l < W; ++l) put(z, l, real(name(at<W>(x, l), at<W>(y, l))));                     \
    return z;                                                                                        \
  }
PAIR_FUNCTION(copysign)
PAIR_FUNCTION(atan2)
PAIR_FUNCTION(hypot)
PAIR_FUNCTION(fmod)
template <int W> FUSED typename Lanes<W>::R f_sign(const typename Lanes<W>::R& x) {
  const typename Lanes<W>::R zero = up<W>(0), one = up<W>(1), minus = up<W>(-1);
  return sel(x > 0, one, sel(x < 0, minus, zero));  // zero of what is not a number too
}
template <int W> FUSED typename Lanes<W>::M f_isfinite(const typename Lanes<W>::R& x) { return x - x == 0; }

#ifdef __CUDACC_RTC__
template <int W> FUSED real f_pow(real x, real y) { return pow(x, y); }
template <int W> FUSED double pow_d(double x, double y) { return pow(x, y); }
#else
#if defined(TORCHIVP_LIBMVEC) && defined(__AVX512F__)
extern "C" Doubles8 _ZGVeN8vv_pow(Doubles8, Doubles8);
extern "C" Floats16 _ZGVeN16vv_powf(Floats16, Floats16);
FUSED Doubles8 vector_pow(Doubles8 x, Doubles8 y) { return _ZGVeN8vv_pow(x, y); }
FUSED Floats16 vector_pow(Floats16 x, Floats16 y) { return _ZGVeN16vv_powf(x, y); }
#else
template <class V> FUSED V vector_pow(const V& x, const V& y) {
  V z;
  for (unsigned l = 0; l < sizeof(V) / sizeof(z[0]); ++l) z[l] = std::pow(x[l], y[l]);
  return z;
}
#endif
template <int W> FUSED typename Lanes<W>::R f_pow(const typename Lanes<W>::R& x, const typename Lanes<W>::R& y) {
  if constexpr (W == 1) return std::pow(x, y);
  else return (typename Lanes<W>::R)vector_pow(x, y);
}
// Of the sizes of steps, in double precision.
template <int W> FUSED typename Lanes<W>::D pow_d(const typename Lanes<W>::D& x, double y) {
  if constexpr (W == 1) return std::pow(x, y);
  else {
    typename Lanes<W>::D z;
    typedef double Part __attribute__((vector_size(64)));
    constexpr int parts = sizeof(z) / sizeof(Part);
    Part part[parts];
    std::memcpy(part, &x, sizeof z);
    for (auto& p : part) p = (Part)vector_pow(p, y - Part{});
    std::memcpy(&z, part, sizeof z);
    return z;
  }
}
#endif

template <int W> FUSED typename Lanes<W>::R f_remainder(
    const typename Lanes<W>::R& x, const typename Lanes<W>::R& y) {
  const typename Lanes<W>::R rest = f_fmod<W>(x, y);
  return sel((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest);
}

// As Python and torch divide: of 1 by 0.1, which is a little more than a tenth, 9 are whole.
template <int W> FUSED typename Lanes<W>::R f_floor_div(
    const typename Lanes<W>::R& x, const typename Lanes<W>::R& y) {
  typename Lanes<W>::R z = x;
  for (int l = 0; l < W; ++l) {
    const real a = at<W>(x, l), b = at<W>(y, l);
    real whole = a / b;
    if (b != 0) {
      const real rest = fmod(a, b);
      real times = (a - rest) / b;
      if (rest != 0 && (b < 0) != (rest < 0)) times -= 1;
      whole = floor(times);
      if (times - whole > real(0.5)) whole += 1;
      if (times == 0) whole = copysign(real(0), a / b);
    }
    put(z, l, whole);
  }
  return z;
}

template <int W> FUSED real sum_of_lanes(const typename Lanes<W>::R& x) {
  if constexpr (W == 1) return x;
  else {
    real s = 0;
    for (int l = 0; l < W; ++l) s += x[l];
    return s;
  }
}

// --- whole numbers, and places that differ from row to row -----------------------------------------------------------

template <int W> FUSED auto widen_i(const typename Lanes<W>::M& m) {
  if constexpr (W == 1) return m;
  else return __builtin_convertvector(m, typename Lanes<W>::I);
}
template <int W, class M> FUSED typename Lanes<W>::M narrow_i(const M& m) {
  if constexpr (W == 1) return m;
  else return __builtin_convertvector(m, typename Lanes<W>::M);
}
template <int W> FUSED int64_t place(const typename Lanes<W>::I& i, int l) {
  if constexpr (W == 1) return i;
  else return i[l];
}
template <int W> FUSED typename Lanes<W>::R to_single(const typename Lanes<W>::R& x) {
  typename Lanes<W>::R y = x;
  for (int l = 0; l < W; ++l) put(y, l, real(float(at<W>(x, l))));
  return y;
}

// Whole numbers of fewer bits, which wrap around.
#define NARROWED(name, type)                                                                         \
  template <int W> FUSED typename Lanes<W>::I name(const typename Lanes<W>::I& i) {                  \
    typename Lanes<W>::I j = i;                                                                      \
    for (int l = 0; l < W; ++l) put(j, l, int64_t((type)place<W>(i, l)));                            \
    return j;                                                                                        \
  }
NARROWED(to_i8, signed char)
NARROWED(to_i16, short)
NARROWED(to_i32, int)
NARROWED(to_u8, unsigned char)

// Quotients and rests by a number that is not zero.
#define WHOLE(name, expression)                                                                      \
  template <int W> FUSED typename Lanes<W>::I name(const typename Lanes<W>::I& i, int64_t b) {       \
    typename Lanes<W>::I j = i;                                                                      \
    for (int l = 0; l < W; ++l) {                                                                    \
      const int64_t a = place<W>(i, l), rest = a % b;                                                \
      const bool below = rest != 0 && (rest < 0) != (b < 0);                                         \
      put(j, l, int64_t(expression));                                                                \
      (void)below;                                                                                   \
    }                                                                                                \
    return j;                                                                                        \
  }
WHOLE(i_div_floor, a / b - below)
WHOLE(i_div_trunc, a / b)
WHOLE(i_mod_floor, rest + (below ? b : 0))
WHOLE(i_fmod_floor, rest)

// A place counted from the end if it is negative. One that does not exist gives what is not a number: the solve stops
// there, and func, evaluated once more outside, raises its own error.
constexpr int64_t NOWHERE = -(int64_t(1) << 40);  // negative still where other dimensions are added to it

template <int W> FUSED typename Lanes<W>::I wrapped(const typename Lanes<W>::I& i, int64_t n) {
  typename Lanes<W>::I p = up_i<W>(0);
  for (int l = 0; l < W; ++l) {
    int64_t k = place<W>(i, l);
    k = k < 0 ? k + n : k;
    put(p, l, k < 0 || k >= n ? NOWHERE : k);
  }
  return p;
}
template <int W> FUSED typename Lanes<W>::R gather(const real* x, const typename Lanes<W>::I& i) {
  typename Lanes<W>::R y = up<W>(0);
  for (int l = 0; l < W; ++l) put(y, l, place<W>(i, l) < 0 ? real(NAN) : x[place<W>(i, l)]);
  return y;
}
template <int W> FUSED typename Lanes<W>::I gather_i(const int64_t* x, const typename Lanes<W>::I& i) {
  typename Lanes<W>::I y = up_i<W>(0);
  for (int l = 0; l < W; ++l) put(y, l, place<W>(i, l) < 0 ? NOWHERE : x[place<W>(i, l)]);
  return y;
}
template <int W> FUSED typename Lanes<W>::R gather_lanes(const typename Lanes<W>::R* x, const typename Lanes<W>::I& i) {
  typename Lanes<W>::R y = up<W>(0);
  for (int l = 0; l < W; ++l) put(y, l, place<W>(i, l) < 0 ? real(NAN) : at<W>(x[place<W>(i, l)], l));
  return y;
}
template <int W> FUSED typename Lanes<W>::I gather_i_lanes(const typename Lanes<W>::I* x, const typename Lanes<W>::I& i) {
  typename Lanes<W>::I y = up_i<W>(0);
  for (int l = 0; l < W; ++l) put(y, l, place<W>(i, l) < 0 ? NOWHERE : place<W>(x[place<W>(i, l)], l));
  return y;
}
template <int W, bool Add> FUSED void scatter(
    typename Lanes<W>::R* x, const typename Lanes<W>::I& i, const typename Lanes<W>::R& value) {
  for (int l = 0; l < W; ++l) {
    if (place<W>(i, l) < 0) continue;
    typename Lanes<W>::R& goal = x[place<W>(i, l)];
    put(goal, l, Add ? at<W>(goal, l) + at<W>(value, l) : at<W>(value, l));
  }
}
template <int W, bool Add> FUSED void scatter_i(
    typename Lanes<W>::I* x, const typename Lanes<W>::I& i, const typename Lanes<W>::I& value) {
  for (int l = 0; l < W; ++l) {
    if (place<W>(i, l) < 0) continue;
    typename Lanes<W>::I& goal = x[place<W>(i, l)];
    put(goal, l, Add ? place<W>(goal, l) + place<W>(value, l) : place<W>(value, l));
  }
}
template <int W, bool Right> FUSED typename Lanes<W>::I search(
    const real* sorted, int64_t n, const typename Lanes<W>::R& values) {
  typename Lanes<W>::I found = up_i<W>(0);
  for (int l = 0; l < W; ++l) {
    const real x = at<W>(values, l);
    int64_t low = 0, high = n;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      const bool before = Right ? !(x < sorted[middle]) : !(x <= sorted[middle]);  // NaN comes last
      if (before) low = middle + 1; else high = middle;
    }
    put(found, l, low);
  }
  return found;
}
