// y = W x + bias for many tokens, where multiplying takes the time: both sides become int16, so that products are added as
// integers, which AVX2 does faster than fp32's. Sixteen rows of W, fp32 or bf16, are made so once for all tokens: 12 bits and
// a sign, with a scale for 64 columns; tokens have 13 bits and a sign. That is finer than bf16. Included once for each
// instruction set.

// Sixteen rows: numbers [cols / 2][16][2], scales [cols / 64][16].
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

// Rows row:row + 16 of W as a panel of `cols` columns.
static void make_panel(const Matrix& w, int row, int cols, Panel panel) {
    for (int i = 0; i < 16; i++) {
        if (w.kind == FP32) panel_row<FP32>(w, row + i, cols, panel, i);
        if (w.kind == BF16) panel_row<BF16>(w, row + i, cols, panel, i);
    }
}

// 16 rows with N tokens. Sums of blocks lie in memory, as in matmul.h.
template <int N>
static void panel_tile(const Matrix& w, Panel panel, const Tokens& x, int cols, int row, int token, float* y, int64_t stride, bool add) {
    const int blocks = (cols + PANEL_COLS - 1) / PANEL_COLS;
    const int16_t* in = x.pairs + int64_t(token) * cols;
    const float* scales = x.scales + int64_t(token) * blocks;
    F8 sums[2][N];
    for (int n = 0; n < N; n++) sums[0][n] = sums[1][n] = zero8();
    for (int block = 0; block < blocks; block++) {
        const int first = block * PANEL_COLS, last = first + PANEL_COLS < cols ? first + PANEL_COLS : cols;
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

// As `some_rows`, for tokens that `Shaped` made for panels.
static void panel_rows(const Matrix& w, const Tokens& x, int first, int last, float* y, int64_t stride, bool add) {
    static thread_local std::vector<int16_t> numbers;
    static thread_local std::vector<float> scales;
    const int cols = (w.cols + 31) & ~31;
    numbers.resize(size_t(16) * cols);
    scales.resize(size_t(16) * (cols / PANEL_COLS + 1));
    const Panel panel = {numbers.data(), scales.data()};
    for (int row = first; row < last; row += 16) {
        make_panel(w, row, cols, panel);
        int token = 0;
        for (; token + 4 <= x.rows; token += 4) panel_tile<4>(w, panel, x, cols, row, token, y, stride, add);
        for (; token < x.rows; token++) panel_tile<1>(w, panel, x, cols, row, token, y, stride, add);
    }
}
