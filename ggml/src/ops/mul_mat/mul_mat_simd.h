#pragma once
// The kernel, written once over a register type V. Include it only from a file that is compiled for V's instruction
// set, inside an anonymous namespace: no symbol of it may leave that file.
//
// A panel of rows by kDepth of the weight is unpacked to f32 once, rows in the lanes, and stays in L1; then every
// column of x passes by. Tiles of kRegisters registers by kColumns columns keep their sums in registers.

constexpr int kDepth = 256;  // a multiple of every block size of ggml's types
constexpr int kRegisters = 2;

template <class V>
struct Tile {
    static constexpr int rows = kRegisters * V::lanes;
    static constexpr int columns = V::lanes == 8 ? 6 : 12;  // sums in 12 of AVX2's 16, or 24 of 32 registers
};

// panel [depth, rows] f32, x [Columns, depth] f32 -> y [Columns, rows] f32, added to if `add`
template <class V, int Columns>
void tile(const float * panel, int depth, const float * x, int64_t x_stride, float * y, int64_t y_stride, bool add) {
    V sum[Columns][kRegisters];
    for (int j = 0; j < Columns; ++j) {
        for (int r = 0; r < kRegisters; ++r) {
            sum[j][r] = add ? V::load(y + j * y_stride + r * V::lanes) : V::zero();
        }
    }
    for (int k = 0; k < depth; ++k, panel += kRegisters * V::lanes) {
        V weight[kRegisters];
        for (int r = 0; r < kRegisters; ++r) {
            weight[r] = V::load(panel + r * V::lanes);
        }
        for (int j = 0; j < Columns; ++j) {
            const V value = V::set(x[j * x_stride + k]);
            for (int r = 0; r < kRegisters; ++r) {
                sum[j][r] = V::fma(weight[r], value, sum[j][r]);
            }
        }
    }
    for (int j = 0; j < Columns; ++j) {
        for (int r = 0; r < kRegisters; ++r) {
            sum[j][r].store(y + j * y_stride + r * V::lanes);
        }
    }
}

template <class V, int Columns>
void tiles(const float * panel, int depth, const float * x, int64_t x_stride, float * y, int64_t y_stride, int64_t n,
           bool add) {
    for (; n >= Columns; n -= Columns, x += Columns * x_stride, y += Columns * y_stride) {
        tile<V, Columns>(panel, depth, x, x_stride, y, y_stride, add);
    }
    if constexpr (Columns > 1) {
        tiles<V, (Columns + 1) / 2>(panel, depth, x, x_stride, y, y_stride, n, add);
    }
}

// Elements [first, first + depth) of a row of the weight.
template <class V>
void unpack(const ggml_zipcache_mul_mat_args & args, int64_t row, int64_t first, int depth, float * to) {
    const uint8_t * from = args.weight + row * args.weight_stride + ggml_row_size(args.type, first);
    if (args.type == GGML_TYPE_F32) {
        std::memcpy(to, from, depth * sizeof(float));
    } else if (args.type == GGML_TYPE_F16 && depth % V::lanes == 0) {
        for (int k = 0; k < depth; k += V::lanes) {
            V::load_f16(reinterpret_cast<const uint16_t *>(from) + k).store(to + k);
        }
    } else {
        ggml_get_type_traits(args.type)->to_float(from, to, depth);
    }
}

// from [n_rows, kDepth] -> panel [depth, Rows]; rows that are missing become 0
template <int Rows>
void transpose(const float (*from)[kDepth], int n_rows, int depth, float * panel) {
    for (int k = 0; k < depth; ++k, panel += Rows) {
        for (int i = 0; i < n_rows; ++i) {
            panel[i] = from[i][k];
        }
        std::fill(panel + n_rows, panel + Rows, 0.0f);
    }
}

template <class V>
void mul_mat_simd(const ggml_zipcache_mul_mat_args & args, int64_t first_row, int64_t last_row) {
    constexpr int rows = Tile<V>::rows;
    alignas(64) float panel[kDepth * rows];
    alignas(64) float unpacked[rows][kDepth];
    std::vector<float> edge;  // [n, rows]: where a short panel's sums go
    for (int64_t row = first_row; row < last_row; row += rows) {
        const int n_rows = int(std::min<int64_t>(rows, last_row - row));
        float * y = args.y + row;
        int64_t y_stride = args.y_stride;
        if (n_rows < rows) {
            edge.resize(args.n * rows);
            y = edge.data();
            y_stride = rows;
        }
        for (int64_t k = 0; k < args.k; k += kDepth) {
            const int depth = int(std::min<int64_t>(kDepth, args.k - k));
            for (int i = 0; i < n_rows; ++i) {
                unpack<V>(args, row + i, k, depth, unpacked[i]);
            }
            transpose<rows>(unpacked, n_rows, depth, panel);
            tiles<V, Tile<V>::columns>(panel, depth, args.x + k, args.x_stride, y, y_stride, args.n, k > 0);
        }
        for (int64_t n = 0; n < args.n && n_rows < rows; ++n) {
            std::copy_n(edge.data() + n * rows, n_rows, args.y + n * args.y_stride + row);
        }
    }
}
