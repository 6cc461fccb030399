// A language model's blocks over the tokens of a pass. Included once for each instruction set.

template <class F>
INLINE void each(int count, int threads, const F& work) {
    pool().run([](const void* it, int begin, int end) { for (int i = begin; i < end; i++) (*(const F*)it)(i); }, &work, count, threads);
}

// Rows are shared out where there are enough of them.
template <class F>
INLINE void each_row(int rows, int threads, const F& work) { each(rows, rows < 4 ? 1 : threads, work); }

static void norm_row(const float* x, const float* weight, int width, float eps, float* y) {
    F8 squares = zero8();
    const int even = width & ~7;
    for (int i = 0; i < even; i += 8) squares = fma8(load8(x + i), load8(x + i), squares);
    float sum = sum8(squares);
    for (int i = even; i < width; i++) sum += x[i] * x[i];
    const float inverse = 1.0f / sqrtf(sum / width + eps);
    for (int i = 0; i < even; i += 8) store8(y + i, mul8(load8(weight + i), mul8(load8(x + i), all8(inverse))));
    for (int i = even; i < width; i++) y[i] = weight[i] * (x[i] * inverse);
}

static void turn_row(float* x, const float* cosine, const float* sine, int width) {
    const int half = width / 2;
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

// silu(gate) * up, for a row.
static void gate_row(float* gate, const float* up, int width) {
    const int even = width & ~7;
    for (int i = 0; i < even; i += 8) {
        const F8 x = load8(gate + i);
        store8(gate + i, mul8(div8(x, add8(all8(1.0f), exp8(sub8(zero8(), x)))), load8(up + i)));
    }
    for (int i = even; i < width; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

// Room for tokens as a matrix of a kind wants them, made from rows of numbers.
struct Shaped {
    std::vector<int16_t> pairs;
    std::vector<int8_t> fours;
    std::vector<float> scales;
    std::vector<float> sums;
    Tokens tokens;
    Form form;
    int padded, groups;

    void begin(int kind, bool panels, const float* x, int rows, int cols) {
        form = form_of(kind, panels);
        tokens = {x, nullptr, nullptr, nullptr, nullptr, rows, cols};
        if (!form.group) return;
        padded = (cols + 31) & ~31;
        groups = (padded + form.group - 1) / form.group;
        scales.resize(size_t(rows) * groups);
        tokens.scales = scales.data();
        if (kind == INT4 || kind == INT6) {
            fours.resize(size_t(rows) * padded), sums.resize(size_t(rows) * groups);
            tokens.fours = fours.data(), tokens.sums = sums.data();
        } else {
            pairs.resize(size_t(rows) * padded);
            tokens.pairs = pairs.data();
        }
    }
    void put(int row) {
        if (!form.group) return;
        const int64_t at = int64_t(row) * padded, group = int64_t(row) * groups;
        put_tokens(tokens.real + int64_t(row) * tokens.cols, tokens.cols, form, pairs.data() + at * !tokens.fours,
                   tokens.fours ? fours.data() + at : nullptr, scales.data() + group, sums.data() + group * !!tokens.fours);
    }
    // Tokens first:first + count, or as many of them as there are.
    Tokens some(int first, int count) const {
        Tokens found = tokens;
        found.rows = tokens.rows - first < count ? tokens.rows - first : count;
        found.real += int64_t(first) * tokens.cols;
        if (!form.group) return found;
        const int64_t at = int64_t(first) * padded, group = int64_t(first) * groups;
        found.scales += group;
        if (tokens.pairs) found.pairs += at;
        if (tokens.fours) found.fours += at, found.sums += group;
        return found;
    }
};

struct Product {
    const Matrix* matrix;
    float* out;
    int64_t stride;
};

// Products of the same tokens, 16 rows of a matrix at a time.
static void multiply_block(const Product* products, int count, const Tokens& tokens, bool panels, bool add, int threads) {
    int blocks = 0;
    for (int i = 0; i < count; i++) blocks += (products[i].matrix->rows + 15) / 16;
    const bool laid_out = laid_out_for(products[0].matrix->kind, panels, tokens.rows);
    const int units = threads <= 1 ? 1 : blocks < threads * 8 ? blocks : threads * 8;
    each(units, threads, [&](int unit) {
        int first = int(int64_t(blocks) * unit / units), last = int(int64_t(blocks) * (unit + 1) / units);
        for (int i = 0; i < count && first < last; i++) {
            const Matrix& matrix = *products[i].matrix;
            const int here = (matrix.rows + 15) / 16;
            if (first < here) {
                const int end = (last < here ? last : here) * 16;
                (laid_out ? panel_rows : some_rows)(matrix, tokens, first * 16, end < matrix.rows ? end : matrix.rows, products[i].out, products[i].stride, add);
            }
            first = first > here ? first - here : 0;
            last -= here;
        }
    });
}

// Tokens are taken in blocks that stay near the core while all rows pass; panels of fp32 and bf16, which take longest to
// make, are made again for each, so theirs are larger. What a token gets doesn't depend on its block.
static void multiply(const Product* products, int count, const Shaped& in, bool panels, bool add, int threads) {
    const int block = !in.form.group ? in.tokens.rows : panels ? 512 : 128;
    for (int first = 0; first < in.tokens.rows; first += block) {
        Product here[3];
        for (int i = 0; i < count; i++)
            here[i] = {products[i].matrix, products[i].out + first * products[i].stride, products[i].stride};
        multiply_block(here, count, in.some(first, block), panels, add, threads);
    }
}

static void store_row(const Segment& segment, int64_t place, int kv, int width, int index, const float* x) {
    for (int head = 0; head < kv; head++) {
        const int64_t at = head * segment.stride + int64_t(index) * width;
        for (int i = 0; i < width; i += 8) {
            const F8 eight = load8(x + head * width + i);
            if (segment.kind == FP32) store8((float*)place + at + i, eight);
            if (segment.kind == BF16) to_bf16((uint16_t*)place + at + i, eight);
            if (segment.kind == FP16) to_fp16((uint16_t*)place + at + i, eight);
        }
    }
}

// q (rows, heads * width), k and v (rows, kv * width) before norms and positions, all with row stride `stride`; keys and
// values are stored; q becomes the answer.
static void attend(const Model& model, int layer, const Batch& batch, float* q, float* k, float* v, int64_t stride, int threads) {
    static thread_local std::vector<float> parts;
    const Layer& one = model.layers[layer];
    const int width = model.width, half = width / 2;
    parts.resize(size_t(batch.slot_count) * model.heads * (width + 2));
    float* const all_parts = parts.data();
    each_row(batch.rows, threads, [&](int row) {
        const float* cosine = batch.cosine + int64_t(batch.positions[row]) * half;
        const float* sine = batch.sine + int64_t(batch.positions[row]) * half;
        for (int head = 0; head < model.heads + model.kv; head++) {
            const bool query = head < model.heads;
            float* x = query ? q + row * stride + head * width : k + row * stride + (head - model.heads) * width;
            const float* weight = query ? one.q_norm : one.k_norm;
            if (weight) norm_row(x, weight, width, model.eps, x);
            if (one.rope) turn_row(x, cosine, sine, width);
            if (query)
                for (int i = 0; i < width; i++) x[i] *= model.scale;
        }
        const Segment& segment = batch.segments[batch.segment[row]];
        store_row(segment, segment.places[layer], model.kv, width, batch.place[row], k + row * stride);
        store_row(segment, segment.places[model.count + layer], model.kv, width, batch.place[row], v + row * stride);
    });
    each(batch.task_count * model.kv, threads, [&](int unit) {
        one_task(model, layer, batch, unit / model.kv, unit % model.kv, q, stride, all_parts);
    });
    each_row(batch.rows, threads, [&](int row) { merge_row(model, batch, row, all_parts, q + row * stride); });
}

// h (rows, hidden): embeddings, which become last hidden states after the final norm.
static void forward(const Model& model, const Batch& batch, float* h, bool panels, int threads) {
    static thread_local std::vector<float> room;
    static thread_local Shaped shaped;
    const int rows = batch.rows, hidden = model.hidden, inner = model.inner;
    const int64_t q_width = int64_t(model.heads) * model.width, kv_width = int64_t(model.kv) * model.width;
    const int64_t stride = q_width + 2 * kv_width;
    room.resize(size_t(rows) * (hidden + stride + q_width + 2 * inner));
    float* const normed = room.data();
    float* const qkv = normed + int64_t(rows) * hidden;
    float* const heard = qkv + rows * stride;
    float* const gate = heard + rows * q_width;
    float* const up = gate + int64_t(rows) * inner;
    Shaped& in = shaped;  // one object for all threads, which each reach their own by the name above
    for (int i = 0; i < model.count; i++) {
        const Layer& layer = model.layers[i];
        in.begin(layer.q.kind, panels, normed, rows, hidden);
        each_row(rows, threads, [&](int row) {
            norm_row(h + int64_t(row) * hidden, layer.before, hidden, model.eps, normed + int64_t(row) * hidden);
            in.put(row);
        });
        const Product into[3] = {{&layer.q, qkv, stride}, {&layer.k, qkv + q_width, stride}, {&layer.v, qkv + q_width + kv_width, stride}};
        multiply(into, 3, in, panels, false, threads);
        attend(model, i, batch, qkv, qkv + q_width, qkv + q_width + kv_width, stride, threads);
        in.begin(layer.o.kind, panels, heard, rows, int(q_width));
        each_row(rows, threads, [&](int row) {
            memcpy(heard + row * q_width, qkv + row * stride, sizeof(float) * q_width);
            in.put(row);
        });
        const Product out = {&layer.o, h, hidden};
        multiply(&out, 1, in, panels, true, threads);
        in.begin(layer.gate.kind, panels, normed, rows, hidden);
        each_row(rows, threads, [&](int row) {
            norm_row(h + int64_t(row) * hidden, layer.after, hidden, model.eps, normed + int64_t(row) * hidden);
            in.put(row);
        });
        const Product wide[2] = {{&layer.gate, gate, inner}, {&layer.up, up, inner}};
        multiply(wide, 2, in, panels, false, threads);
        in.begin(layer.down.kind, panels, gate, rows, inner);
        each_row(rows, threads, [&](int row) {
            gate_row(gate + int64_t(row) * inner, up + int64_t(row) * inner, inner);
            in.put(row);
        });
        const Product down = {&layer.down, h, hidden};
        multiply(&down, 1, in, panels, true, threads);
    }
    each_row(rows, threads, [&](int row) {
        norm_row(h + int64_t(row) * hidden, model.norm, hidden, model.eps, h + int64_t(row) * hidden);
    });
}

// y (rows, matrix.rows) of x (rows, matrix.cols).
static void linear(const Matrix& matrix, const float* x, int rows, float* y, bool panels, int threads) {
    static thread_local Shaped shaped;
    Shaped& in = shaped;
    in.begin(matrix.kind, panels, x, rows, matrix.cols);
    each_row(rows, threads, [&](int row) { in.put(row); });
    const Product product = {&matrix, y, matrix.rows};
    multiply(&product, 1, in, panels, false, threads);
}

static const Functions functions = {forward, attend, linear};
