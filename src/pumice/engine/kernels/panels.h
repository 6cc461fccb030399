// y = W x + bias for many tokens, where multiplying takes the time: sixteen rows of W, a panel, are laid out once for all
// tokens, as integers, whose products AVX2 adds faster than fp32's. Included once for each instruction set.
//
//   W           a panel's numbers                               scales of columns  tokens
//   FP32, BF16  int16 [cols / 2][16][2] of 12 bits and a sign    64                int16 of 13 bits and a sign: finer than bf16
//   INT8        int16 [cols / 2][16][2]                          32                int16, and sums as those of `int8_tile`
//   INT4        uint8 [cols / 4][16][4]                          32, and the least  int8, and sums as those of `int4_tile`
//   INT6        uint8 [cols / 4][16][4]                          32, and the least  int8

static const int MANY = 32;  // tokens for which laying out integer weights pays

INLINE bool laid_out_for(int kind, bool panels, int tokens) {
    return panels || kind == INT6 || ((kind == INT8 || kind == INT4) && tokens >= MANY);
}

// Scales [groups][16]; of INT4 and INT6 [groups][scale, least][16].
struct Panel {
    int16_t* numbers;
    float* scales;
};

// One of the sixteen rows; `row` may be behind the last, which is zeros.
template <int KIND>
static void panel_row(const Matrix& w, int row, int cols, Panel panel, int index) {
    for (int block = 0; block < cols; block += PANEL_COLS) {
        const int count = cols - block < PANEL_COLS ? cols - block : PANEL_COLS;
        float part[PANEL_COLS];
        int16_t numbers[PANEL_COLS];
        const int64_t at = int64_t(row) * w.cols + block;
        F8 most = zero8();
        for (int k = 0; k < count; k += 8) {
            if (row < w.rows && block + k + 8 <= w.cols)
                store8(part + k, weights8<KIND>(w.data, at + k));
            else
                for (int i = k; i < k + 8; i++) part[i] = row < w.rows && block + i < w.cols ? weight1<KIND>(w.data, at + i) : 0.0f;
            most = max8(most, abs8(load8(part + k)));
        }
        const float size = most8(most);
        panel.scales[block / PANEL_COLS * 16 + index] = size / PANEL_MOST;
        const F8 factor = all8(size > 1e-30f ? PANEL_MOST / size : 0.0f);
        for (int k = 0; k < count; k += 8) store_int16(numbers + k, mul8(load8(part + k), factor));
        for (int k = 0; k < count; k += 2) memcpy(panel.numbers + 16 * (block + k) + 2 * index, numbers + k, 4);
    }
}

static void panel_of_int8(const Matrix& w, int row, int cols, Panel panel) {
    const int groups = cols / 32;
    for (int half = 0; half < 2; half++) {
        const int8_t* packed = (const int8_t*)w.data + int64_t(row + 8 * half) * cols;
        const uint16_t* scales = (const uint16_t*)w.scales + int64_t(row + 8 * half) * groups;
        for (int k = 0; k < cols; k += 2) store_int(panel.numbers + 16 * (k + half), load_pairs(packed + 8 * k));
        for (int group = 0; group < groups; group++) store8(panel.scales + 16 * group + 8 * half, from_fp16(scales + 8 * group));
    }
}

template <int KIND>
static void panel_of_bytes(const Matrix& w, int row, int cols, Panel panel) {
    const int groups = cols / 32, packed_cols = KIND == INT4 ? cols / 2 : cols;
    uint8_t* const numbers = (uint8_t*)panel.numbers;
    for (int half = 0; half < 2; half++) {
        const uint8_t* packed = (const uint8_t*)w.data + int64_t(row + 8 * half) * packed_cols;
        const uint16_t* scales = (const uint16_t*)w.scales + int64_t(row + 8 * half) * groups * 2;
        for (int k = 0; k < cols; k += 8) {
            I8 low, high;
            if (KIND == INT4)
                load_halves(packed + 4 * k, low, high);
            else
                low = load_int(packed + 8 * k), high = load_int(packed + 8 * k + 32);
            store_int(numbers + 16 * k + 32 * half, low);
            store_int(numbers + 16 * (k + 4) + 32 * half, high);
        }
        for (int i = 0; i < 2 * groups; i++) store8(panel.scales + 16 * i + 8 * half, from_fp16(scales + 8 * i));
    }
}

// Rows row:row + 16 of W as a panel of `cols` columns.
static void make_panel(const Matrix& w, int row, int cols, Panel panel) {
    if (w.kind == INT8) return panel_of_int8(w, row, cols, panel);
    if (w.kind == INT4) return panel_of_bytes<INT4>(w, row, cols, panel);
    if (w.kind == INT6) return panel_of_bytes<INT6>(w, row, cols, panel);
    for (int i = 0; i < 16; i++) {
        if (w.kind == FP32) panel_row<FP32>(w, row + i, cols, panel, i);
        if (w.kind == BF16) panel_row<BF16>(w, row + i, cols, panel, i);
    }
}

// 16 rows with N tokens, in int16 with a scale for GROUP columns. Sums of blocks lie in memory, as in matmul.h.
template <int GROUP, int N>
static void pairs_tile(const Matrix& w, Panel panel, const Tokens& x, int cols, int row, int token, float* y, int64_t stride, bool add) {
    const int blocks = (cols + GROUP - 1) / GROUP;
    const int16_t* in = x.pairs + int64_t(token) * cols;
    const float* scales = x.scales + int64_t(token) * blocks;
    F8 sums[2][N];
    for (int n = 0; n < N; n++) sums[0][n] = sums[1][n] = zero8();
    for (int block = 0; block < blocks; block++) {
        const int first = block * GROUP, last = first + GROUP < cols ? first + GROUP : cols;
        I8 part[2][N];
        for (int n = 0; n < N; n++) part[0][n] = part[1][n] = zero_int();
#pragma GCC unroll 4
        for (int k = first; k < last; k += 2) {
            const I8 a = load_int(panel.numbers + 16 * k), b = load_int(panel.numbers + 16 * k + 16);
            for (int n = 0; n < N; n++) {
                const I8 these = all_pairs(in + n * cols + k);
                part[0][n] = add_pairs(part[0][n], a, these);
                part[1][n] = add_pairs(part[1][n], b, these);
            }
        }
        IN_MEMORY(sums);
        const F8 above = load8(panel.scales + 16 * block), below = load8(panel.scales + 16 * block + 8);
        for (int n = 0; n < N; n++) {
            const F8 scale = all8(scales[n * blocks + block]);
            sums[0][n] = fma8(to_float(part[0][n]), mul8(above, scale), sums[0][n]);
            sums[1][n] = fma8(to_float(part[1][n]), mul8(below, scale), sums[1][n]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 2; i++) give8(sums[i][n], w, row + 8 * i, y + (token + n) * stride, add);
}

// Sums of 32 columns of 16 rows with N tokens, which `whole` makes whole where they are of INT4.
template <int KIND, int N>
INLINE void sum_bytes(const uint8_t* numbers, const int8_t* in, int cols, I8 (&part)[2][N]) {
    if (KIND == INT6)
        for (int n = 0; n < N; n++) part[0][n] = part[1][n] = zero_int();
#pragma GCC unroll 4
    for (int k = 0; k < 32; k += 8) {
        const uint8_t* at = numbers + 16 * k;
        const I8 a = load_int(at), b = load_int(at + 32), c = load_int(at + 64), d = load_int(at + 96);
        for (int n = 0; n < N; n++) {
            const I8 left = all_fours(in + n * cols + k), right = all_fours(in + n * cols + k + 4);
            if (KIND == INT6) {
                part[0][n] = add_eights(part[0][n], a, left, c, right);
                part[1][n] = add_eights(part[1][n], b, left, d, right);
                continue;
            }
            part[0][n] = add_fours(k ? add_fours(part[0][n], a, left) : first_fours(a, left), c, right);
            part[1][n] = add_fours(k ? add_fours(part[1][n], b, left) : first_fours(b, left), d, right);
        }
    }
}

// The same for INT4 and INT6.
template <int KIND, int N>
static void bytes_tile(const Matrix& w, Panel panel, const Tokens& x, int cols, int row, int token, float* y, int64_t stride, bool add) {
    const int groups = cols / 32;
    const uint8_t* numbers = (const uint8_t*)panel.numbers;
    const int8_t* in = x.fours + int64_t(token) * cols;
    const float* scales = x.scales + int64_t(token) * groups;
    const float* offsets = x.sums + int64_t(token) * groups;
    F8 sums[2][N];
    for (int n = 0; n < N; n++) sums[0][n] = sums[1][n] = zero8();
    for (int group = 0; group < groups; group++, numbers += 512, in += 32) {
        I8 part[2][N];
        sum_bytes<KIND, N>(numbers, in, cols, part);
        IN_MEMORY(sums);
        const float* steps = panel.scales + 32 * group;
        for (int n = 0; n < N; n++) {
            const F8 offset = all8(offsets[n * groups + group]), scale = all8(scales[n * groups + group]);
            for (int i = 0; i < 2; i++) {
                const F8 whole_sum = to_float(KIND == INT4 ? whole(part[i][n]) : part[i][n]);
                const F8 real = fma8(whole_sum, load8(steps + 8 * i), mul8(offset, load8(steps + 16 + 8 * i)));
                sums[i][n] = fma8(real, scale, sums[i][n]);
            }
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 2; i++) give8(sums[i][n], w, row + 8 * i, y + (token + n) * stride, add);
}

template <int N>
INLINE void panel_tile(const Matrix& w, Panel panel, const Tokens& x, int cols, int row, int token, float* y, int64_t stride, bool add) {
    if (w.kind == INT4) return bytes_tile<INT4, N>(w, panel, x, cols, row, token, y, stride, add);
    if (w.kind == INT6) return bytes_tile<INT6, N>(w, panel, x, cols, row, token, y, stride, add);
    if (w.kind == INT8) return pairs_tile<32, N>(w, panel, x, cols, row, token, y, stride, add);
    pairs_tile<PANEL_COLS, N>(w, panel, x, cols, row, token, y, stride, add);
}

// The first place from `p` on where a cache line begins.
template <class T>
INLINE T* line_from(T* p) { return (T*)(((uintptr_t)p + 63) & ~uintptr_t(63)); }

// As `some_rows`, for many tokens; those of FP32 and BF16 are what `Shaped` makes for panels.
static void panel_rows(const Matrix& w, const Tokens& x, int first, int last, float* y, int64_t stride, bool add) {
    static thread_local std::vector<int16_t> numbers;
    static thread_local std::vector<float> scales;
    const int cols = (w.cols + 31) & ~31;
    numbers.resize(size_t(16) * cols + 32);
    scales.resize(size_t(32) * (cols / 32 + 1) + 16);
    const Panel panel = {line_from(numbers.data()), line_from(scales.data())};
    for (int row = first; row < last; row += 16) {
        make_panel(w, row, cols, panel);
        int token = 0;
        for (; token + 4 <= x.rows; token += 4) panel_tile<4>(w, panel, x, cols, row, token, y, stride, add);
        for (; token < x.rows; token++) panel_tile<1>(w, panel, x, cols, row, token, y, stride, add);
    }
}
