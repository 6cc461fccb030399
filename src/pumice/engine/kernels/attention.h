// Attention of a few queries over pieces of sequences. A task is a tile of queries over some chunks of keys; a row's parts
// are put together in the order of its path, by their largest scores and sums. Included once for each instruction set.

// The answer of one query to some keys: values (width), weighted by e^(score - most), and the sum of these weights.
struct Part {
    float *values, *most, *sum;
};

INLINE Part part_at(float* parts, const Model& model, int slot, int head) {
    float* at = parts + (int64_t(slot) * model.heads + head) * (model.width + 2);
    return {at, at + model.width, at + model.width + 1};
}

static void merge_part(Part into, Part part, int width) {
    if (*part.sum == 0.0f) return;
    if (*into.sum == 0.0f) {
        memcpy(into.values, part.values, sizeof(float) * width);
        *into.most = *part.most;
        *into.sum = *part.sum;
        return;
    }
    const float most = *into.most > *part.most ? *into.most : *part.most;
    float factors[8] = {*into.most - most, *part.most - most};
    store8(factors, exp8(load8(factors)));
    const F8 a = all8(factors[0]), b = all8(factors[1]);
    for (int i = 0; i < width; i += 8)
        store8(into.values + i, fma8(load8(part.values + i), b, mul8(load8(into.values + i), a)));
    *into.sum = *into.sum * factors[0] + *part.sum * factors[1];
    *into.most = most;
}

static const int BLOCK = 32, CHUNK = 512;  // keys made fp32 at once; the most keys of a chunk

template <int N>
INLINE void score_tile(const float* const* q, const float* k, int keys, int width, float* scores, int64_t stride) {
    // Keys short of four are read twice, and what comes of it is overwritten or never read.
    const float* rows[4] = {k, k + (keys > 1) * width, k + (keys > 2) * 2 * width, k + (keys > 3) * 3 * width};
    F8 sums[N][4];
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++) sums[n][i] = zero8();
    for (int at = 0; at < width; at += 8) {
        F8 key[4];
        for (int i = 0; i < 4; i++) key[i] = load8(rows[i] + at);
        for (int n = 0; n < N; n++) {
            const F8 query = load8(q[n] + at);
            for (int i = 0; i < 4; i++) sums[n][i] = fma8(query, key[i], sums[n][i]);
        }
    }
    for (int n = 0; n < N; n++) store4(scores + n * stride, sums4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]));
}

// As `score_tile` for a block of keys that lie side by side, (width, BLOCK): nothing is summed across a vector.
template <int N>
INLINE void block_scores(const float* const* q, const float* turned, int width, float* scores, int64_t stride) {
    F8 sums[N][BLOCK / 8];
    for (int n = 0; n < N; n++)
        for (int i = 0; i < BLOCK / 8; i++) sums[n][i] = zero8();
    for (int at = 0; at < width; at++) {
        F8 keys[BLOCK / 8];
        for (int i = 0; i < BLOCK / 8; i++) keys[i] = load8(turned + at * BLOCK + 8 * i);
        for (int n = 0; n < N; n++) {
            const F8 query = all8(q[n][at]);
            for (int i = 0; i < BLOCK / 8; i++) sums[n][i] = fma8(query, keys[i], sums[n][i]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < BLOCK / 8; i++) store8(scores + n * stride + 8 * i, sums[n][i]);
}

template <int N, int V>
INLINE void value_tile(const float* scores, int64_t stride, const float* v, int keys, int width, float* out) {
    F8 sums[N][V];
    for (int n = 0; n < N; n++)
        for (int i = 0; i < V; i++) sums[n][i] = load8(out + n * width + 8 * i);
    for (int key = 0; key < keys; key++) {
        F8 value[V];
        for (int i = 0; i < V; i++) value[i] = load8(v + int64_t(key) * width + 8 * i);
        for (int n = 0; n < N; n++) {
            const F8 weight = all8(scores[n * stride + key]);
            for (int i = 0; i < V; i++) sums[n][i] = fma8(weight, value[i], sums[n][i]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < V; i++) store8(out + n * width + 8 * i, sums[n][i]);
}

template <int N>
INLINE void value_tiles(const float* scores, int64_t stride, const float* v, int keys, int width, float* out) {
    int at = 0;
    for (; at + 32 <= width; at += 32) value_tile<N, 4>(scores, stride, v + at, keys, width, out + at);
    for (; at < width; at += 8) value_tile<N, 1>(scores, stride, v + at, keys, width, out + at);
}

// Keys or values `first : first + count` of a head as fp32: where they are, or in `room`.
static const float* as_real(const Segment& segment, int64_t place, int head, int first, int count, int width, float* room) {
    const int64_t at = head * segment.stride + int64_t(first) * width;
    if (segment.kind == FP32) return (const float*)place + at;
    const uint16_t* half = (const uint16_t*)place + at;
    for (int i = 0; i < count * width; i += 8)
        store8(room + i, segment.kind == FP16 ? from_fp16(half + i) : from_bf16(half + i));
    return room;
}

// Keys (count, width) as (width, BLOCK); what stands for keys that aren't there is never read as a score.
static void turn_keys(const float* k, int count, int width, float* turned) {
    for (int key = 0; key < BLOCK; key += 8)
        for (int at = 0; at < width; at += 8) {
            float rows[64];
            if (key + 8 > count)
                for (int i = 0; i < 8; i++)
                    store8(rows + 8 * i, key + i < count ? load8(k + (key + i) * width + at) : zero8());
            const bool inside = key + 8 <= count;
            turn8(inside ? k + key * width + at : rows, inside ? width : 8, turned + at * BLOCK + key, BLOCK);
        }
}

struct Tile {
    const Model& model;
    const Batch& batch;
    const Task& task;
    int layer, kv_head, queries;  // queries: rows * heads that share a kv head
    const float** q;              // (queries,)
    float *scores, *room, *turned, *values;
    int64_t stride;
};

// The keys that a query may see, as indices into the chunk's segment.
INLINE void seen(const Tile& tile, const Chunk& chunk, int query, int window, int& first, int& last) {
    const int row = tile.batch.task_rows[tile.task.rows + query / (tile.model.heads / tile.model.kv)];
    const int reach = chunk.own ? tile.batch.place[row] + 1 : chunk.last;
    last = reach < chunk.last ? reach : chunk.last;
    first = chunk.first;
    if (window) {
        const int oldest = tile.batch.positions[row] - window + 1 - tile.batch.segments[chunk.segment].start;
        first = oldest > first ? oldest : first;
    }
}

// Scores to weights, for keys from:to of which the query sees first:last; the rest gets 0.
static void weigh(float* scores, int from, int to, int first, int last, float* most_of, float* sum_of_all) {
    const int count = to - from, whole_count = (count + 7) & ~7;
    for (int i = 0; i < first - from; i++) scores[i] = -INFINITY;
    for (int i = last - from; i < whole_count; i++) scores[i] = -INFINITY;
    F8 most = all8(-INFINITY), sum = zero8();
    for (int i = 0; i < whole_count; i += 8) most = max8(most, load8(scores + i));
    const float top = most8(most);
    for (int i = 0; i < whole_count; i += 8) {
        const F8 weight = exp8(sub8(load8(scores + i), all8(top)));
        store8(scores + i, weight);
    }
    for (int i = 0; i < first - from; i++) scores[i] = 0.0f;
    for (int i = last - from; i < whole_count; i++) scores[i] = 0.0f;
    for (int i = 0; i < whole_count; i += 8) sum = add8(sum, load8(scores + i));
    *most_of = top;
    *sum_of_all = sum8(sum);
}

static void one_chunk(const Tile& tile, const Chunk& chunk, float* parts) {
    const Model& model = tile.model;
    const Segment& segment = tile.batch.segments[chunk.segment];
    const int width = model.width, window = model.layers[tile.layer].window, shared = model.heads / model.kv;
    int from = chunk.last, to = chunk.first;
    for (int n = 0; n < tile.queries; n += shared) {
        int first, last;
        seen(tile, chunk, n, window, first, last);
        if (first < last) from = first < from ? first : from, to = last > to ? last : to;
    }
    if (from >= to) return;
    from -= (from - chunk.first) % 8;  // so that sums are made in the same order whoever else is in the tile
    for (int block = from; block < to; block += BLOCK) {
        const int count = to - block < BLOCK ? to - block : BLOCK;
        const float* k = as_real(segment, segment.places[tile.layer], tile.kv_head, block, count, width, tile.room);
        float* scores = tile.scores + block - from;
        int n = 0;
        if (tile.task.long_span) {
            turn_keys(k, count, width, tile.turned);
            for (; n + 3 <= tile.queries; n += 3)
                block_scores<3>(tile.q + n, tile.turned, width, scores + n * tile.stride, tile.stride);
            for (; n < tile.queries; n++)
                block_scores<1>(tile.q + n, tile.turned, width, scores + n * tile.stride, tile.stride);
            continue;
        }
        for (int i = 0; i < count; i += 4, scores += 4) {
            for (n = 0; n + 3 <= tile.queries; n += 3)
                score_tile<3>(tile.q + n, k + i * width, count - i, width, scores + n * tile.stride, tile.stride);
            for (; n < tile.queries; n++)
                score_tile<1>(tile.q + n, k + i * width, count - i, width, scores + n * tile.stride, tile.stride);
        }
    }
    float* const mosts = tile.values + int64_t(tile.queries) * width;
    float* const sums = mosts + tile.queries;
    memset(tile.values, 0, sizeof(float) * tile.queries * width);
    for (int n = 0; n < tile.queries; n++) {
        int first, last;
        seen(tile, chunk, n, window, first, last);
        float* scores = tile.scores + n * tile.stride;
        if (first < last) {
            weigh(scores, from, to, first, last, mosts + n, sums + n);
        } else {
            memset(scores, 0, sizeof(float) * (to - from));
            sums[n] = 0.0f;
        }
    }
    for (int block = from; block < to; block += BLOCK) {
        const int count = to - block < BLOCK ? to - block : BLOCK;
        const float* v =
            as_real(segment, segment.places[model.count + tile.layer], tile.kv_head, block, count, width, tile.room);
        const float* weights = tile.scores + block - from;
        int n = 0;
        for (; n + 3 <= tile.queries; n += 3)
            value_tiles<3>(weights + n * tile.stride, tile.stride, v, count, width, tile.values + n * width);
        for (; n < tile.queries; n++)
            value_tiles<1>(weights + n * tile.stride, tile.stride, v, count, width, tile.values + n * width);
    }
    for (int n = 0; n < tile.queries; n++) {
        const Part into = part_at(parts, model, tile.task.slot + n / shared, tile.kv_head * shared + n % shared);
        merge_part(into, {tile.values + n * width, mosts + n, sums + n}, width);
    }
}

// A task for one kv head: q (rows, heads * width), scaled, to parts (slots, heads, width + 2).
static void one_task(const Model& model, int layer, const Batch& batch, int index, int kv_head, const float* q, int64_t q_stride, float* parts) {
    static thread_local std::vector<float> room;
    static thread_local std::vector<const float*> pointers;
    const Task& task = batch.tasks[index];
    const int shared = model.heads / model.kv, queries = task.row_count * shared;
    const int64_t stride = CHUNK + 16;
    room.resize(queries * (stride + model.width + 2) + 2 * BLOCK * model.width + 16);
    pointers.resize(queries);
    for (int n = 0; n < queries; n++) {
        const int row = batch.task_rows[task.rows + n / shared];
        pointers[n] = q + row * q_stride + (kv_head * shared + n % shared) * model.width;
        *part_at(parts, model, task.slot + n / shared, kv_head * shared + n % shared).sum = 0.0f;
    }
    float* const scores = room.data();
    float* const block = scores + queries * stride;
    const Tile tile = {model, batch, task, layer, kv_head, queries, pointers.data(), scores, block, block + BLOCK * model.width, block + 2 * BLOCK * model.width, stride};
    for (int i = 0; i < task.chunk_count; i++) one_chunk(tile, batch.chunks[task.chunks + i], parts);
}

// The parts of a row put together: out (heads * width).
static void merge_row(const Model& model, const Batch& batch, int row, float* parts, float* out) {
    for (int head = 0; head < model.heads; head++) {
        const int begin = batch.slot_starts[row], end = batch.slot_starts[row + 1];
        const Part whole_part = part_at(parts, model, batch.slots[begin], head);
        for (int i = begin + 1; i < end; i++)
            merge_part(whole_part, part_at(parts, model, batch.slots[i], head), model.width);
        const F8 inverse = all8(1.0f / *whole_part.sum);
        for (int i = 0; i < model.width; i += 8)
            store8(out + head * model.width + i, mul8(load8(whole_part.values + i), inverse));
    }
}
