// What Python hands to the kernels. The ctypes structures of __init__.py mirror these, field by field.
#pragma once
#include <cstdint>

enum Kind : int32_t { FP32 = 0, BF16 = 1, FP16 = 2, INT8 = 3, INT4 = 4, INT6 = 5 };

// A linear layer's weights, y = W x + bias. FP32, BF16: rows of cols, one behind the other.
// INT8: 8 rows at a time, [rows / 8][cols / 2][8][2] int8, scales [rows / 8][cols / 32][8] fp16.
// INT4: [rows / 8][cols / 8][8][4] bytes, the low half of a byte is column k, the high half k + 4; a weight is
// scale * number + least, scales [rows / 8][cols / 32][scale, least][8] fp16.
// INT6: [rows / 8][cols / 4][8][4] bytes from 0 to 63, scales as those of INT4.
// Integer rows are made up to a multiple of 16, cols to one of 32.
struct Matrix {
    const void* data;
    const void* scales;
    const float* bias;
    int32_t rows, cols, kind, unused;
};

struct Layer {
    const float *before, *after;    // norms (hidden,) before attention and before the MLP
    const float *q_norm, *k_norm;   // norms (width,) of each head, or null
    Matrix q, k, v, o, gate, up, down;
    int32_t rope, window;  // whether positions turn q and k; keys that a token sees, 0 for all
};

struct Model {
    const Layer* layers;
    const float* norm;
    int32_t count, hidden, heads, kv, width, inner;
    float eps, scale;
};

// Keys and values of consecutive tokens: a place for each layer's keys, then for each layer's values; a head's are
// `stride` elements after the one's before.
struct Segment {
    const int64_t* places;
    int64_t stride;
    int32_t kind, start;
};

// Keys first:last of a segment. In a sequence's own segment a row sees keys up to its own.
struct Chunk {
    int32_t segment, first, last, own;
};

// Queries of the rows task_rows[rows : rows + row_count] over chunks[chunks : chunks + chunk_count]; row i of them
// leaves its part of the answer in slot `slot + i`. Those of a long span are many, and of one sequence.
struct Task {
    int32_t rows, row_count, chunks, chunk_count, slot, long_span;
};

struct Batch {
    int32_t rows, task_count, slot_count, unused;
    const int32_t* positions;  // (rows,)
    const int32_t* segment;    // (rows,) where the row's keys and values go
    const int32_t* place;      // (rows,) their index in that segment
    const float *cosine, *sine;  // (positions, width / 2)
    const Segment* segments;
    const Task* tasks;
    const Chunk* chunks;
    const int32_t* task_rows;
    const int32_t* slot_starts;  // (rows + 1,) into slots: the parts of a row, in the order of its path
    const int32_t* slots;
};
