// The language model's blocks for few tokens, where reading weights and keys takes the time, in plain C++ and for AVX2 and
// AVX-512 VNNI, chosen when it runs. Python calls the functions at the end through ctypes.
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "pool.h"
#include "types.h"

static Pool& pool() {
    static Pool* const one = new Pool;  // never destroyed: its threads may outlive whatever else the process ends
    return *one;
}

struct Functions {
    void (*forward)(const Model&, const Batch&, float*, bool, int);
    void (*attend)(const Model&, int, const Batch&, float*, float*, float*, int64_t, int);
    void (*linear)(const Matrix&, const float*, int, float*, bool, int);
};

static inline float half_to_float(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float sign = half >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return exponent ? sign * ldexpf(float(1024 + fraction), exponent - 25) : sign * ldexpf(float(fraction), -24);
}

static inline uint16_t float_to_half(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return sign | 0x7E00;
    const float size = fabsf(x);
    if (size >= 65520.0f) return sign | 0x7C00;
    int exponent;
    frexpf(size, &exponent);  // size is in [2^(exponent - 1), 2^exponent)
    if (exponent < -13) return sign | uint16_t(nearbyintf(ldexpf(size, 24)));
    return sign | uint16_t(((exponent + 13) << 10) + int(nearbyintf(ldexpf(size, 11 - exponent))));
}

#define PUMICE_AVX2 0
#define PUMICE_VNNI 0
namespace any_processor {
#include "simd.h"
#include "matmul.h"
#include "panels.h"
#include "attention.h"
#include "step.h"
}  // namespace any_processor

#if defined(__x86_64__)
#undef INLINE
#undef PUMICE_AVX2
#define PUMICE_AVX2 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#include "simd.h"
#include "matmul.h"
#include "panels.h"
#include "attention.h"
#include "step.h"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#undef INLINE
#undef PUMICE_VNNI
#define PUMICE_VNNI 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#endif
namespace vnni {
#include "simd.h"
#include "matmul.h"
#include "panels.h"
#include "attention.h"
#include "step.h"
}  // namespace vnni
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

static int best_level() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) return 0;
    const bool wide = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    return wide && __builtin_cpu_supports("avx512vnni") ? 2 : 1;
#else
    return 0;
#endif
}

static std::atomic<int> level{-1};

static const Functions& chosen() {
    if (level.load() < 0) level.store(best_level());
#if defined(__x86_64__)
    if (level.load() == 2) return vnni::functions;
    if (level.load() == 1) return avx2::functions;
#endif
    return any_processor::functions;
}

#define API extern "C" __attribute__((visibility("default")))

// 0: any processor, 1: AVX2, 2: AVX-512 VNNI. Uses the best that is at most `wanted`, and says which.
API int pumice_level(int wanted) {
    const int best = best_level();
    level.store(wanted < best ? wanted : best);
    return level.load();
}

API void pumice_forward(const Model* model, const Batch* batch, float* h, int panels, int threads) {
    chosen().forward(*model, *batch, h, panels, threads);
}

API void pumice_attend(const Model* model, int layer, const Batch* batch, float* q, float* k, float* v, int64_t stride, int threads) {
    chosen().attend(*model, layer, *batch, q, k, v, stride, threads);
}

API void pumice_linear(const Matrix* matrix, const float* x, int rows, float* y, int panels, int threads) {
    chosen().linear(*matrix, x, rows, y, panels, threads);
}

// Ask for large pages, which spare a walk through tables every 4 KiB of weights.
API void pumice_large_pages(void* data, int64_t bytes) {
#if defined(__linux__)
    const uintptr_t page = 4096, first = ((uintptr_t)data + page - 1) & ~(page - 1), last = ((uintptr_t)data + bytes) & ~(page - 1);
    if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}
