// Eight numbers at a time. Included once for each instruction set, inside of a namespace of its own.

#undef PREFETCH
#define PREFETCH(at) __builtin_prefetch((at), 0, 3)
#define INLINE static inline __attribute__((always_inline))

#if PUMICE_AVX2

typedef __m256 F8;
typedef __m256i I8;
typedef __m128 F4;

INLINE F8 zero8() { return _mm256_setzero_ps(); }
INLINE F8 all8(float x) { return _mm256_set1_ps(x); }
INLINE F8 load8(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store8(float* p, F8 x) { _mm256_storeu_ps(p, x); }
INLINE F8 fma8(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE F8 add8(F8 a, F8 b) { return _mm256_add_ps(a, b); }
INLINE F8 sub8(F8 a, F8 b) { return _mm256_sub_ps(a, b); }
INLINE F8 mul8(F8 a, F8 b) { return _mm256_mul_ps(a, b); }
INLINE F8 div8(F8 a, F8 b) { return _mm256_div_ps(a, b); }
INLINE F8 max8(F8 a, F8 b) { return _mm256_max_ps(a, b); }
INLINE F8 min8(F8 a, F8 b) { return _mm256_min_ps(a, b); }
INLINE F8 abs8(F8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE F8 from_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
INLINE F8 from_fp16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE void to_fp16(uint16_t* p, F8 x) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, 0)); }
// The sums of four vectors, each in the order ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
INLINE F4 sums4(F8 a, F8 b, F8 c, F8 d) {
    const F8 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}
INLINE void store4(float* p, F4 x) { _mm_storeu_ps(p, x); }
// Eight rows of eight numbers, which become eight columns.
INLINE void turn8(const float* p, int64_t stride, float* out, int64_t out_stride) {
    F8 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        const F8 a = load8(p + i * stride), b = load8(p + (i + 1) * stride);
        pairs[i] = _mm256_unpacklo_ps(a, b), pairs[i + 1] = _mm256_unpackhi_ps(a, b);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
            fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xEE);
        }
    for (int i = 0; i < 4; i++) {
        store8(out + i * out_stride, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20));
        store8(out + (i + 4) * out_stride, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31));
    }
}
INLINE F8 rounded8(F8 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F8 power_of_two(F8 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE I8 zero_int() { return _mm256_setzero_si256(); }
INLINE I8 load_int(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
INLINE void store_int(void* p, I8 x) { _mm256_storeu_si256((__m256i*)p, x); }
INLINE F8 to_float(I8 x) { return _mm256_cvtepi32_ps(x); }
INLINE void store_int16(int16_t* p, F8 x) {
    const __m256i n = _mm256_cvtps_epi32(x);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1)));
}
// 32 numbers as bytes; returns the sum of these.
INLINE int32_t store_bytes(int8_t* p, F8 a, F8 b, F8 c, F8 d) {
    const __m256i i = _mm256_cvtps_epi32(a), j = _mm256_cvtps_epi32(b), k = _mm256_cvtps_epi32(c), l = _mm256_cvtps_epi32(d);
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(i, j), _mm256_packs_epi32(k, l));  // by lanes
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(bytes, order));
    const __m256i sums = _mm256_add_epi32(_mm256_add_epi32(i, j), _mm256_add_epi32(k, l));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}
INLINE float most8(F8 x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
// INT8: two columns of eight rows, with two of a token's int16 numbers.
INLINE I8 load_pairs(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
INLINE I8 all_pairs(const int16_t* p) { int32_t x; memcpy(&x, p, 4); return _mm256_set1_epi32(x); }
// INT4: four columns of eight rows as unsigned bytes, with four of a token's int8 numbers.
INLINE void load_halves(const uint8_t* p, I8& low, I8& high) {
    const __m256i both = _mm256_loadu_si256((const __m256i*)p), mask = _mm256_set1_epi8(15);
    low = _mm256_and_si256(both, mask);
    high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
}
INLINE I8 all_fours(const int8_t* p) { int32_t x; memcpy(&x, p, 4); return _mm256_set1_epi32(x); }
#if PUMICE_VNNI
INLINE I8 add_pairs(I8 sum, I8 w, I8 x) { return _mm256_dpwssd_epi32(sum, w, x); }
INLINE I8 add_fours(I8 sum, I8 w, I8 x) { return _mm256_dpbusd_epi32(sum, w, x); }
INLINE I8 first_fours(I8 w, I8 x) { return add_fours(zero_int(), w, x); }
INLINE I8 add_eights(I8 sum, I8 w, I8 x, I8 v, I8 y) { return add_fours(add_fours(sum, w, x), v, y); }
INLINE I8 whole(I8 sum) { return sum; }
#else
// GCC 12 puts off additions, and keeps what is to be added in memory, unless it is told that each sum is looked at.
INLINE I8 seen_now(I8 sum) { asm("" : "+x"(sum)); return sum; }
INLINE I8 add_pairs(I8 sum, I8 w, I8 x) { return seen_now(_mm256_add_epi32(sum, _mm256_madd_epi16(w, x))); }
// Sums of int16: eight times 2 * 15 * 127 is 30480, which fits.
INLINE I8 add_fours(I8 sum, I8 w, I8 x) { return seen_now(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x))); }
INLINE I8 first_fours(I8 w, I8 x) { return seen_now(_mm256_maddubs_epi16(w, x)); }
// INT6: four times 63 * 127 is 32004, which fits, and no more.
INLINE I8 add_eights(I8 sum, I8 w, I8 x, I8 v, I8 y) {
    const I8 both = _mm256_add_epi16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(v, y));
    return seen_now(_mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1))));
}
INLINE I8 whole(I8 sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
#endif

#else  // any processor: the compiler makes of it what it can

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef float F4 __attribute__((vector_size(16)));

INLINE F8 zero8() { return F8{}; }
INLINE F8 all8(float x) { return F8{} + x; }
INLINE F8 load8(const float* p) { F8 x; memcpy(&x, p, 32); return x; }
INLINE void store8(float* p, F8 x) { memcpy(p, &x, 32); }
INLINE F8 fma8(F8 a, F8 b, F8 c) { return a * b + c; }
INLINE F8 add8(F8 a, F8 b) { return a + b; }
INLINE F8 sub8(F8 a, F8 b) { return a - b; }
INLINE F8 mul8(F8 a, F8 b) { return a * b; }
INLINE F8 div8(F8 a, F8 b) { return a / b; }
INLINE F8 max8(F8 a, F8 b) { return a > b ? a : b; }
INLINE F8 min8(F8 a, F8 b) { return a < b ? a : b; }
INLINE F8 abs8(F8 a) { return max8(a, -a); }
INLINE F8 from_bf16(const uint16_t* p) {
    F8 x;
    for (int i = 0; i < 8; i++) { const uint32_t bits = uint32_t(p[i]) << 16; float one; memcpy(&one, &bits, 4); x[i] = one; }
    return x;
}
INLINE F8 from_fp16(const uint16_t* p) {
    F8 x;
    for (int i = 0; i < 8; i++) x[i] = half_to_float(p[i]);
    return x;
}
INLINE void to_fp16(uint16_t* p, F8 x) { for (int i = 0; i < 8; i++) p[i] = float_to_half(x[i]); }
INLINE float sum_of(F8 a) { return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7])); }
INLINE F4 sums4(F8 a, F8 b, F8 c, F8 d) { return F4{sum_of(a), sum_of(b), sum_of(c), sum_of(d)}; }
INLINE void store4(float* p, F4 x) { memcpy(p, &x, 16); }
INLINE void turn8(const float* p, int64_t stride, float* out, int64_t out_stride) {
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) out[j * out_stride + i] = p[i * stride + j];
}
INLINE F8 rounded8(F8 x) { for (int i = 0; i < 8; i++) x[i] = nearbyintf(x[i]); return x; }
INLINE F8 power_of_two(F8 n) {
    F8 x;
    for (int i = 0; i < 8; i++) { const int32_t bits = (int32_t(n[i]) + 127) << 23; float one; memcpy(&one, &bits, 4); x[i] = one; }
    return x;
}
INLINE I8 zero_int() { return I8{}; }
INLINE I8 load_int(const void* p) { I8 x; memcpy(&x, p, 32); return x; }
INLINE void store_int(void* p, I8 x) { memcpy(p, &x, 32); }
INLINE I8 all_int(int32_t x) { return I8{} + x; }
INLINE F8 to_float(I8 x) { return __builtin_convertvector(x, F8); }
INLINE void store_int16(int16_t* p, F8 x) { for (int i = 0; i < 8; i++) p[i] = int16_t(nearbyintf(x[i])); }
INLINE int32_t store_bytes(int8_t* p, F8 a, F8 b, F8 c, F8 d) {
    const F8 all[4] = {a, b, c, d};
    int32_t sum = 0;
    for (int i = 0; i < 32; i++) sum += p[i] = int8_t(nearbyintf(all[i / 8][i % 8]));
    return sum;
}
INLINE float most8(F8 x) {
    float most = x[0];
    for (int i = 1; i < 8; i++) most = x[i] > most ? x[i] : most;
    return most;
}
typedef int16_t S16 __attribute__((vector_size(32)));
typedef int8_t S32 __attribute__((vector_size(32)));
INLINE I8 load_pairs(const int8_t* p) { S16 x; for (int i = 0; i < 16; i++) x[i] = p[i]; return (I8)x; }
INLINE I8 all_pairs(const int16_t* p) { int32_t x; memcpy(&x, p, 4); return all_int(x); }
INLINE void load_halves(const uint8_t* p, I8& low, I8& high) {
    I8 both;
    memcpy(&both, p, 32);
    low = both & 0x0F0F0F0F;
    high = (both >> 4) & 0x0F0F0F0F;
}
INLINE I8 all_fours(const int8_t* p) { int32_t x; memcpy(&x, p, 4); return all_int(x); }
INLINE I8 add_pairs(I8 sum, I8 w, I8 x) {
    const S16 a = (S16)w, b = (S16)x;
    for (int i = 0; i < 8; i++) sum[i] += int32_t(a[2 * i]) * b[2 * i] + int32_t(a[2 * i + 1]) * b[2 * i + 1];
    return sum;
}
INLINE I8 add_fours(I8 sum, I8 w, I8 x) {
    const S32 a = (S32)w, b = (S32)x;
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) sum[i] += int32_t(a[4 * i + j]) * b[4 * i + j];
    return sum;
}
INLINE I8 first_fours(I8 w, I8 x) { return add_fours(zero_int(), w, x); }
INLINE I8 add_eights(I8 sum, I8 w, I8 x, I8 v, I8 y) { return add_fours(add_fours(sum, w, x), v, y); }
INLINE I8 whole(I8 sum) { return sum; }

#endif

INLINE void to_bf16(uint16_t* p, F8 x) {
    uint32_t bits[8];
    memcpy(bits, &x, 32);
    for (int i = 0; i < 8; i++) p[i] = uint16_t((bits[i] + 0x7FFF + (bits[i] >> 16 & 1)) >> 16);
}
INLINE float sum8(F8 x) {
    float sums[4];
    store4(sums, sums4(x, x, x, x));
    return sums[0];
}
// e to the x, to about two units in the last place; nothing below -87.
INLINE F8 exp8(F8 x) {
    x = min8(max8(x, all8(-87.0f)), all8(88.0f));
    const F8 n = rounded8(mul8(x, all8(1.44269504f)));
    const F8 r = fma8(n, all8(2.12194440e-4f), fma8(n, all8(-0.693359375f), x));
    F8 y = all8(1.9875691500e-4f);
    y = fma8(y, r, all8(1.3981999507e-3f));
    y = fma8(y, r, all8(8.3334519073e-3f));
    y = fma8(y, r, all8(4.1665795894e-2f));
    y = fma8(y, r, all8(1.6666665459e-1f));
    y = fma8(y, r, all8(5.0000001201e-1f));
    y = add8(fma8(y, mul8(r, r), r), all8(1.0f));
    return mul8(y, power_of_two(n));
}
