// y = W x + bias for a few tokens: every weight is read once for up to four of them. What a token gets doesn't depend on
// how many others there are: each sum is made in one order. Included once for each instruction set.

static const int PANEL_COLS = 64;  // columns that share a scale in a panel: 64 * 4095 * 8191 is less than 2^31
static const float PANEL_MOST = 4095.0f, PANEL_TOKEN_MOST = 8191.0f;
static const int AHEAD = 4096;  // bytes of weights that are asked for before they are needed

// Tokens (rows, cols), also as integers where weights are: with a scale for each 32 of them.
struct Tokens {
    const float* real;
    const int16_t* pairs;  // INT8
    const int8_t* fours;   // INT4, INT6
    const float* scales;   // (rows, cols / 32)
    const float* sums;     // (rows, cols / 32), of 32 integers, which the least weight of these goes with
    int rows, cols;
};

// What tokens are made into: as they are, int16 or int8 for weights of these kinds, or int16 for panels.
struct Form {
    int group;  // numbers that share a scale
    float most;
};

static Form form_of(int kind, bool panels) {
    if (panels) return {PANEL_COLS, PANEL_TOKEN_MOST};
    if (kind == INT4 || kind == INT6) return {32, 127.0f};
    return kind == INT8 ? Form{32, 32767.0f} : Form{0, 0.0f};
}

static void put_tokens(const float* x, int cols, Form form, int16_t* pairs, int8_t* fours, float* scales, float* sums) {
    const int padded = (cols + 31) & ~31;
    for (int k = 0, group = 0; k < padded; k += form.group, group++) {
        const int count = padded - k < form.group ? padded - k : form.group;
        float room[PANEL_COLS];
        const float* part = x + k;
        if (k + count > cols) {  // zeros behind the last
            for (int i = 0; i < count; i++) room[i] = k + i < cols ? x[k + i] : 0.0f;
            part = room;
        }
        F8 most = zero8();
        for (int i = 0; i < count; i += 8) most = max8(most, abs8(load8(part + i)));
        const float size = most8(most);
        const F8 inverse = all8(size > 1e-30f ? form.most / size : 0.0f);
        scales[group] = size / form.most;
        if (fours) {
            F8 four[4];
            for (int i = 0; i < 4; i++) four[i] = mul8(load8(part + 8 * i), inverse);
            sums[group] = float(store_bytes(fours + k, four[0], four[1], four[2], four[3]));
        } else {
            for (int i = 0; i < count; i += 8) store_int16(pairs + k + i, mul8(load8(part + i), inverse));
        }
    }
}

INLINE void give(float* y, float sum, const float* bias, int row, bool add) {
    if (bias) sum += bias[row];
    y[row] = add ? y[row] + sum : sum;
}

template <int KIND>
INLINE F8 weights8(const void* w, int64_t at) {
    return KIND == FP32 ? load8((const float*)w + at) : from_bf16((const uint16_t*)w + at);
}
template <int KIND>
INLINE float weight1(const void* w, int64_t at) {
    if (KIND == FP32) return ((const float*)w)[at];
    const uint32_t bits = uint32_t(((const uint16_t*)w)[at]) << 16;
    float one;
    memcpy(&one, &bits, 4);
    return one;
}

// R rows (4 or 8, or 1) of W with N tokens.
template <int KIND, int R, int N>
static void real_tile(const Matrix& w, const Tokens& x, int row, int token, float* y, int64_t stride, bool add) {
    const int cols = w.cols, even = cols & ~7;
    F8 sums[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) sums[r][n] = zero8();
    const int64_t size = KIND == FP32 ? 4 : 2;
    const char* next = (const char*)w.data + int64_t(row + R) * cols * size;  // the rows after these
    for (int k = 0; k < even; k += 8) {
        if (R > 1 && k % (64 / size) == 0)
            for (int r = 0; r < R; r++) PREFETCH(next + (int64_t(r) * cols + k) * size);
        F8 in[N];
        for (int n = 0; n < N; n++) in[n] = load8(x.real + int64_t(token + n) * cols + k);
        for (int r = 0; r < R; r++) {
            const F8 one = weights8<KIND>(w.data, int64_t(row + r) * cols + k);
            for (int n = 0; n < N; n++) sums[r][n] = fma8(one, in[n], sums[r][n]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int r = 0; r < R; r += 4) {
            float four[4];
            store4(four, sums4(sums[r][n], sums[r + (R > 1)][n], sums[r + 2 * (R > 1)][n], sums[r + 3 * (R > 1)][n]));
            for (int i = 0; i < (R < 4 ? R : 4); i++) {
                for (int k = even; k < cols; k++)
                    four[i] += weight1<KIND>(w.data, int64_t(row + r + i) * cols + k) * x.real[int64_t(token + n) * cols + k];
                give(y + (token + n) * stride, four[i], w.bias, row + r + i, add);
            }
        }
}

template <int KIND>
static void real_rows(const Matrix& w, const Tokens& x, int first, int last, float* y, int64_t stride, bool add) {
    int row = first;
    if (x.rows == 1)
        for (; row + 8 <= last; row += 8) real_tile<KIND, 8, 1>(w, x, row, 0, y, stride, add);
    for (; row + 4 <= last; row += 4) {
        int token = 0;
        for (; token + 3 <= x.rows; token += 3) real_tile<KIND, 4, 3>(w, x, row, token, y, stride, add);
        if (token + 2 == x.rows) real_tile<KIND, 4, 2>(w, x, row, token, y, stride, add);
        if (token + 1 == x.rows) real_tile<KIND, 4, 1>(w, x, row, token, y, stride, add);
    }
    for (; row < last; row++)
        for (int token = 0; token < x.rows; token++) real_tile<KIND, 1, 1>(w, x, row, token, y, stride, add);
}

INLINE void give8(F8 sum, const Matrix& w, int row, float* y, bool add) {
    if (row + 8 <= w.rows) {
        if (w.bias) sum = add8(sum, load8(w.bias + row));
        return store8(y + row, add ? add8(load8(y + row), sum) : sum);
    }
    float eight[8];
    store8(eight, sum);
    for (int i = 0; i < 8 && row + i < w.rows; i++) give(y, eight[i], w.bias, row + i, add);
}

// The sums lie in memory while a group's integers are added: there are registers for only one of the two.
#define IN_MEMORY(array) asm volatile("" : : "r"(&(array)[0][0]) : "memory")

// 16 rows of int8 weights with N tokens.
template <int N>
static void int8_tile(const Matrix& w, const Tokens& x, int row, int token, float* y, int64_t stride, bool add) {
    const int cols = (w.cols + 31) & ~31, groups = cols / 32;
    const int8_t* one = (const int8_t*)w.data + int64_t(row) * cols;
    const int8_t* two = one + 8 * cols;
    const uint16_t* first_scales = (const uint16_t*)w.scales + int64_t(row) * groups;
    const uint16_t* second_scales = first_scales + 8 * groups;
    const int16_t* in = x.pairs + int64_t(token) * cols;
    const float* scales = x.scales + int64_t(token) * groups;
    F8 sums[2][N];
    for (int n = 0; n < N; n++) sums[0][n] = sums[1][n] = zero8();
    for (int group = 0; group < groups; group++, one += 256, two += 256, in += 32) {
        if (N < 3)
            for (int line = 0; line < 256; line += 64) PREFETCH(one + AHEAD + line), PREFETCH(two + AHEAD + line);
        I8 part[2][N];
        for (int n = 0; n < N; n++) part[0][n] = part[1][n] = zero_int();
#pragma GCC unroll 16
        for (int k = 0; k < 32; k += 2) {
            const I8 a = load_pairs(one + 8 * k), b = load_pairs(two + 8 * k);
            for (int n = 0; n < N; n++) {
                const I8 these = all_pairs(in + n * cols + k);
                part[0][n] = add_pairs(part[0][n], a, these);
                part[1][n] = add_pairs(part[1][n], b, these);
            }
        }
        if (N > 2) IN_MEMORY(sums);
        const F8 first = from_fp16(first_scales + 8 * group), second = from_fp16(second_scales + 8 * group);
        for (int n = 0; n < N; n++) {
            const F8 scale = all8(scales[n * groups + group]);
            sums[0][n] = fma8(to_float(part[0][n]), mul8(first, scale), sums[0][n]);
            sums[1][n] = fma8(to_float(part[1][n]), mul8(second, scale), sums[1][n]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 2; i++) give8(sums[i][n], w, row + 8 * i, y + (token + n) * stride, add);
}

// 16 rows of int4 weights with N tokens.
template <int N>
static void int4_tile(const Matrix& w, const Tokens& x, int row, int token, float* y, int64_t stride, bool add) {
    const int cols = (w.cols + 31) & ~31, groups = cols / 32;
    const uint8_t* one = (const uint8_t*)w.data + int64_t(row) * cols / 2;
    const uint8_t* two = one + 4 * cols;
    const uint16_t* first_scales = (const uint16_t*)w.scales + int64_t(row) * groups * 2;
    const uint16_t* second_scales = first_scales + 16 * groups;
    const int8_t* in = x.fours + int64_t(token) * cols;
    const float* scales = x.scales + int64_t(token) * groups;
    const float* offsets = x.sums + int64_t(token) * groups;
    F8 sums[2][N];
    for (int n = 0; n < N; n++) sums[0][n] = sums[1][n] = zero8();
    for (int group = 0; group < groups; group++, one += 128, two += 128, in += 32) {
        if (N < 3)
            for (int line = 0; line < 128; line += 64) PREFETCH(one + AHEAD + line), PREFETCH(two + AHEAD + line);
        I8 part[2][N];
        for (int n = 0; n < N; n++) part[0][n] = part[1][n] = zero_int();
#pragma GCC unroll 4
        for (int k = 0; k < 32; k += 8) {
            I8 a, b, c, d;
            load_halves(one + 4 * k, a, b);
            load_halves(two + 4 * k, c, d);
            for (int n = 0; n < N; n++) {
                const I8 left = all_fours(in + n * cols + k), right = all_fours(in + n * cols + k + 4);
                part[0][n] = add_fours(add_fours(part[0][n], a, left), b, right);
                part[1][n] = add_fours(add_fours(part[1][n], c, left), d, right);
            }
        }
        const F8 first = from_fp16(first_scales + 16 * group), least = from_fp16(first_scales + 16 * group + 8);
        const F8 second = from_fp16(second_scales + 16 * group), lesser = from_fp16(second_scales + 16 * group + 8);
        for (int n = 0; n < N; n++) {
            const F8 scale = all8(scales[n * groups + group]);
            const F8 count = all8(offsets[n * groups + group]);
            sums[0][n] = fma8(fma8(to_float(whole(part[0][n])), first, mul8(count, least)), scale, sums[0][n]);
            sums[1][n] = fma8(fma8(to_float(whole(part[1][n])), second, mul8(count, lesser)), scale, sums[1][n]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 2; i++) give8(sums[i][n], w, row + 8 * i, y + (token + n) * stride, add);
}

template <int KIND, int N>
INLINE void int_tile(const Matrix& w, const Tokens& x, int row, int token, float* y, int64_t stride, bool add) {
    KIND == INT8 ? int8_tile<N>(w, x, row, token, y, stride, add) : int4_tile<N>(w, x, row, token, y, stride, add);
}

template <int KIND>
static void int_rows(const Matrix& w, const Tokens& x, int first, int last, float* y, int64_t stride, bool add) {
    for (int row = first; row < last; row += 16) {
        int token = 0;
        for (; token + 4 <= x.rows; token += 4) int_tile<KIND, 4>(w, x, row, token, y, stride, add);
        if (token + 3 == x.rows) int_tile<KIND, 3>(w, x, row, token, y, stride, add);
        if (token + 2 == x.rows) int_tile<KIND, 2>(w, x, row, token, y, stride, add);
        if (token + 1 == x.rows) int_tile<KIND, 1>(w, x, row, token, y, stride, add);
    }
}

// Rows first:last of y = W x, y (tokens, stride); first is a multiple of 16.
static void some_rows(const Matrix& w, const Tokens& x, int first, int last, float* y, int64_t stride, bool add) {
    switch (w.kind) {
        case FP32: return real_rows<FP32>(w, x, first, last, y, stride, add);
        case BF16: return real_rows<BF16>(w, x, first, last, y, stride, add);
        case INT8: return int_rows<INT8>(w, x, first, last, y, stride, add);
        case INT4: return int_rows<INT4>(w, x, first, last, y, stride, add);
    }
}
