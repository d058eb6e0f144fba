// The HTDQ kernel for many 16-bit values: each block tabulates the result of all 65536 numbers in
// shared memory, 128 KB, and then looks the values up there, one access for each.
//
// That is worth it where the memory is faster than the search: on the GPUs with HBM, which are also
// those with that much shared memory.
#pragma once

#include "htdq/search.cuh"

namespace qvd {

constexpr int32_t kLookupThreads = 1024;
constexpr int32_t kLookupNumbers = 1 << 16;
constexpr int32_t kLookupBytes = 2 * kLookupNumbers;
constexpr int32_t kLookupCellBytes = 2 * kMaxLevels * static_cast<int32_t>(sizeof(float));

// Tabulates the results, in the order of the numbers' bits. To be followed by a barrier.
//
// A thread searches the first and the last number of one tile. Where both end at the same cell, all
// between them do: the numbers of a tile have one sign and ascend or descend, but for the tile that
// starts at an infinity, and all the others of that are NaN. The few tiles that thresholds cut are
// searched number by number; neighbours belong to different warps, which then share that work.
template <typename T>
__device__ inline void tabulate(float const* cells, int32_t depth, uint4* results) {
    constexpr int32_t kVector = kVectorBytes / sizeof(T);
    constexpr int32_t kTile = kLookupNumbers / kLookupThreads;
    constexpr int32_t kTileVectors = kTile / kVector;
    constexpr int32_t kWarp = 32;
    constexpr int32_t kWarps = kLookupThreads / kWarp;
    static_assert(kTile == 64 && kWarp % kTileVectors == 0, "a tile starts at each infinity");
    auto const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const warp = thread / kWarp;
    int32_t const lane = thread % kWarp;

    Vector<T, kVector> ends;
    auto const first = static_cast<uint32_t>((lane * kWarps + warp) * kTile);
    ends.word = make_uint4(first | (first + kTile - 1) << 16, 0, 0, 0);
    float const* const begin = htdq_search(cells, depth, widen(ends.lane[0]));
    float const* const end = htdq_search(cells, depth, widen(ends.lane[1]));
    auto const uniform = static_cast<int32_t>(begin == end);
    float const level = htdq_level(begin);
    for (int32_t i = 0; i < kTileVectors; ++i) {
        // Vector i of each of the warp's lanes; kTileVectors lanes write one tile.
        int32_t const owner = (i * kWarp + lane) / kTileVectors;
        int32_t const at = (owner * kWarps + warp) * kTileVectors + lane % kTileVectors;
        Vector<T, kVector> y;
        T const all = narrow<T>(__shfl_sync(~0U, level, owner));
#pragma unroll
        for (int32_t k = 0; k < kVector; ++k) {
            y.lane[k] = all;
        }
        if (__shfl_sync(~0U, uniform, owner) == 0) {
            uint32_t const pair = static_cast<uint32_t>(at * kVector) * 0x10001U + 0x10000U;
            Vector<T, kVector> x;
            x.word = make_uint4(pair, pair + 0x20002U, pair + 0x40004U, pair + 0x60006U);
            y = look_up(cells, depth, x);
        }
        results[at] = y.word;
    }
}

// x and y are aligned to kVectorBytes.
template <typename T>
__global__ void __launch_bounds__(kLookupThreads)
    htdq_lookup_kernel(__grid_constant__ HtdqTable const table, T const* x, T* y, int64_t count) {
    constexpr int32_t kVector = kVectorBytes / sizeof(T);
    constexpr int32_t kInFlight = 2;
    extern __shared__ uint4 results[];
    __shared__ float cells[2 * kMaxLevels];
    copy_cells(table, cells);
    __syncthreads();
    tabulate<T>(cells, table.depth, results);
    __syncthreads();

    auto const* const result = reinterpret_cast<uint16_t const*>(results);
    int64_t const first = static_cast<int64_t>(blockIdx.x) * kLookupThreads + threadIdx.x;
    int64_t const stride = static_cast<int64_t>(gridDim.x) * kLookupThreads;
    int64_t const vectors = count / kVector;
    auto const* const x_vectors = reinterpret_cast<uint4 const*>(x);
    auto* const y_vectors = reinterpret_cast<uint4*>(y);
    for (int64_t i = first; i < vectors; i += kInFlight * stride) {
        Vector<uint16_t, kVector> value[kInFlight];
#pragma unroll
        for (int32_t k = 0; k < kInFlight; ++k) {
            if (i + k * stride < vectors) {
                value[k].word = x_vectors[i + k * stride];
            }
        }
#pragma unroll
        for (int32_t k = 0; k < kInFlight; ++k) {
            if (i + k * stride < vectors) {
#pragma unroll
                for (int32_t lane = 0; lane < kVector; ++lane) {
                    value[k].lane[lane] = result[value[k].lane[lane]];
                }
                y_vectors[i + k * stride] = value[k].word;
            }
        }
    }
    // Fewer than kVector values are left.
    int64_t const last = vectors * kVector + first;
    if (last < count) {
        reinterpret_cast<uint16_t*>(y)[last] = result[reinterpret_cast<uint16_t const*>(x)[last]];
    }
}

}  // namespace qvd
