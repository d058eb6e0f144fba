// What the HTDQ kernels share: the numeric types, wide loads and stores, and the search.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "htdq/table.h"

namespace qvd {

constexpr uintptr_t kVectorBytes = 16;

__device__ inline float widen(float x) {
    return x;
}
__device__ inline float widen(__half x) {
    return __half2float(x);
}
__device__ inline float widen(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

template <typename T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow(float x) {
    return x;
}
template <>
__device__ inline __half narrow(float x) {
    return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 narrow(float x) {
    return __float2bfloat16_rn(x);
}

// kWidth values that are loaded and stored with one instruction.
template <typename T, int32_t kWidth>
union Vector {
    std::conditional_t<kWidth == 1, T, uint4> word;
    T lane[kWidth];
    __device__ Vector() {}
};

// Copies the codebook to shared memory, by the first kMaxLevels threads of the block; to be
// followed by a barrier.
__device__ inline void copy_cells(HtdqTable const& table, float* cells) {
    int32_t const cell = static_cast<int32_t>(threadIdx.x);
    if (cell < (1 << table.depth)) {
        cells[cell] = table.cells[cell];
        cells[kMaxLevels + cell] = table.cells[kMaxLevels + cell];
    }
}

// Looks kWidth values up at once, which hides the latency of shared memory.
template <typename T, int32_t kWidth>
__device__ inline Vector<T, kWidth> look_up(float const* cells, int32_t depth,
                                            Vector<T, kWidth> x) {
    float value[kWidth];
    float const* cell[kWidth];
#pragma unroll
    for (int32_t i = 0; i < kWidth; ++i) {
        value[i] = widen(x.lane[i]);
        cell[i] = cells;
    }
#pragma unroll
    for (int32_t step = 0; step < kMaxDepth; ++step) {
        if (step == depth) {
            break;
        }
#pragma unroll
        for (int32_t i = 0; i < kWidth; ++i) {
            cell[i] = htdq_step(cell[i], step, value[i]);
        }
    }
    Vector<T, kWidth> y;
#pragma unroll
    for (int32_t i = 0; i < kWidth; ++i) {
        y.lane[i] = narrow<T>(htdq_level(cell[i]));
    }
    return y;
}

}  // namespace qvd
