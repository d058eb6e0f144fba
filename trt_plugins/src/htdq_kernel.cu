#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "htdq_kernel.h"

namespace qvd {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kBlocksPerMultiprocessor = 8;
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

// Every thread searches kWidth values at once, which hides the latency of shared memory.
template <typename T, int32_t kWidth>
__device__ Vector<T, kWidth> look_up(float const* tree, T const* levels, int32_t depth,
                                     Vector<T, kWidth> x) {
    float value[kWidth];
    int32_t node[kWidth];
#pragma unroll
    for (int32_t i = 0; i < kWidth; ++i) {
        value[i] = widen(x.lane[i]);
        node[i] = 1;
    }
    for (int32_t step = 0; step < depth; ++step) {
#pragma unroll
        for (int32_t i = 0; i < kWidth; ++i) {
            node[i] = htdq_step(tree, node[i], value[i]);
        }
    }
    Vector<T, kWidth> y;
#pragma unroll
    for (int32_t i = 0; i < kWidth; ++i) {
        y.lane[i] = levels[node[i] - (1 << depth)];
    }
    return y;
}

template <typename T, int32_t kWidth>
__global__ void __launch_bounds__(kThreads)
    htdq_kernel(__grid_constant__ HtdqTable const table, T const* x, T* y, int64_t count) {
    __shared__ float tree[kMaxLevels];
    __shared__ T levels[kMaxLevels];
    for (int32_t i = threadIdx.x; i < (1 << table.depth); i += kThreads) {
        tree[i] = table.tree[i];
        levels[i] = narrow<T>(table.levels[i]);
    }
    __syncthreads();

    int64_t const first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    int64_t const stride = static_cast<int64_t>(gridDim.x) * kThreads;
    int64_t const vectors = count / kWidth;
    auto const* const x_vectors = reinterpret_cast<Vector<T, kWidth> const*>(x);
    auto* const y_vectors = reinterpret_cast<Vector<T, kWidth>*>(y);
    for (int64_t i = first; i < vectors; i += stride) {
        Vector<T, kWidth> value;
        value.word = x_vectors[i].word;
        y_vectors[i].word = look_up(tree, levels, table.depth, value).word;
    }
    // Fewer than kWidth values are left, and the grid has at least kThreads threads.
    int64_t const last = vectors * kWidth + first;
    if (last < count) {
        y[last] = levels[htdq_index(tree, table.depth, widen(x[last]))];
    }
}

template <typename T, int32_t kWidth>
cudaError_t launch(HtdqTable table, void const* x, void* y, int64_t count, cudaStream_t stream) {
    int32_t device = 0;
    int32_t multiprocessors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) {
        return error;
    }
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) {
        return error;
    }
    int64_t const wanted = (count / kWidth + kThreads - 1) / kThreads;
    int64_t const most = static_cast<int64_t>(multiprocessors) * kBlocksPerMultiprocessor;
    dim3 const blocks(static_cast<uint32_t>(std::clamp<int64_t>(wanted, 1, most)));
    void* arguments[] = {&table, &x, &y, &count};
    auto const* const kernel = reinterpret_cast<void const*>(&htdq_kernel<T, kWidth>);
    return cudaLaunchKernel(kernel, blocks, dim3(kThreads), arguments, 0, stream);
}

template <typename T>
cudaError_t launch_aligned(HtdqTable const& table, void const* x, void* y, int64_t count,
                           cudaStream_t stream) {
    auto const addresses = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y);
    if (addresses % sizeof(T) != 0) {
        return cudaErrorMisalignedAddress;
    }
    if (addresses % kVectorBytes != 0) {
        return launch<T, 1>(table, x, y, count, stream);
    }
    return launch<T, kVectorBytes / sizeof(T)>(table, x, y, count, stream);
}

}  // namespace

cudaError_t htdq_launch(HtdqTable const& table, HtdqType type, void const* x, void* y,
                        int64_t count, cudaStream_t stream) noexcept {
    if (count == 0) {
        return cudaSuccess;
    }
    bool const table_is_valid = table.depth >= 1 && table.depth <= kMaxDepth;
    if (count < 0 || x == nullptr || y == nullptr || !table_is_valid) {
        return cudaErrorInvalidValue;
    }
    switch (type) {
        case HtdqType::kFloat32:
            return launch_aligned<float>(table, x, y, count, stream);
        case HtdqType::kFloat16:
            return launch_aligned<__half>(table, x, y, count, stream);
        case HtdqType::kBFloat16:
            return launch_aligned<__nv_bfloat16>(table, x, y, count, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace qvd
