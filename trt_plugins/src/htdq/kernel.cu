#include <algorithm>

#include "htdq/kernel.h"
#include "htdq/lookup.cuh"
#include "htdq/search.cuh"

namespace qvd {
namespace {

constexpr int32_t kThreads = 256;
static_assert(kThreads >= kMaxLevels, "copy_cells");

template <typename T, int32_t kWidth>
__global__ void __launch_bounds__(kThreads)
    htdq_kernel(__grid_constant__ HtdqTable const table, T const* x, T* y, int64_t count) {
    __shared__ float cells[2 * kMaxLevels];
    copy_cells(table, cells);
    __syncthreads();

    int64_t const first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    int64_t const stride = static_cast<int64_t>(gridDim.x) * kThreads;
    int64_t const vectors = count / kWidth;
    auto const* const x_vectors = reinterpret_cast<Vector<T, kWidth> const*>(x);
    auto* const y_vectors = reinterpret_cast<Vector<T, kWidth>*>(y);
    for (int64_t i = first; i < vectors; i += stride) {
        Vector<T, kWidth> value;
        value.word = x_vectors[i].word;
        y_vectors[i].word = look_up(cells, table.depth, value).word;
    }
    // Fewer than kWidth values are left, and the grid has at least kThreads threads.
    int64_t const last = vectors * kWidth + first;
    if (last < count) {
        y[last] = narrow<T>(htdq_level(htdq_search(cells, table.depth, widen(x[last]))));
    }
}

// The current device, as far as the launch depends on it.
struct Device {
    int32_t multiprocessors;
    int32_t shared_bytes;
};

cudaError_t find_device(Device& device) {
    int32_t id = 0;
    cudaError_t error = cudaGetDevice(&id);
    auto const find = [&](int32_t& value, cudaDeviceAttr attribute) {
        error = error == cudaSuccess ? cudaDeviceGetAttribute(&value, attribute, id) : error;
    };
    find(device.multiprocessors, cudaDevAttrMultiProcessorCount);
    find(device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    return error;
}

// The four arguments of all kernels.
struct Arguments {
    HtdqTable table;
    void const* x;
    void* y;
    int64_t count;
};

cudaError_t launch(void const* kernel, int32_t blocks, int32_t threads, size_t shared_bytes,
                   Arguments& arguments, cudaStream_t stream) {
    void* pointers[] = {&arguments.table, &arguments.x, &arguments.y, &arguments.count};
    dim3 const grid(static_cast<uint32_t>(blocks));
    dim3 const block(static_cast<uint32_t>(threads));
    return cudaLaunchKernel(kernel, grid, block, pointers, shared_bytes, stream);
}

template <typename T, int32_t kWidth>
cudaError_t launch_search(Device const& device, Arguments& arguments, cudaStream_t stream) {
    auto const* const kernel = reinterpret_cast<void const*>(&htdq_kernel<T, kWidth>);
    int64_t const wanted = (arguments.count / kWidth + kThreads - 1) / kThreads;
    int32_t resident = 1;  // blocks at a time on one multiprocessor
    if (wanted > device.multiprocessors) {
        cudaError_t const error =
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0);
        if (error != cudaSuccess) {
            return error;
        }
    }
    int64_t const most = int64_t{device.multiprocessors} * resident;
    auto const blocks = static_cast<int32_t>(std::clamp<int64_t>(wanted, 1, most));
    return launch(kernel, blocks, kThreads, 0, arguments, stream);
}

template <typename T>
cudaError_t launch_lookup(Device const& device, Arguments& arguments, cudaStream_t stream) {
    auto const* const kernel = reinterpret_cast<void const*>(&htdq_lookup_kernel<T>);
    cudaError_t const error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kLookupBytes);
    if (error != cudaSuccess) {
        return error;
    }
    return launch(kernel, device.multiprocessors, kLookupThreads, kLookupBytes, arguments, stream);
}

// A block that tabulates all numbers of a 16-bit type should look up at least twice as many values.
bool is_lookup_faster(Device const& device, int64_t count) {
    return count >= int64_t{device.multiprocessors} * 2 * kLookupNumbers;
}

template <typename T>
cudaError_t launch_typed(Arguments& arguments, HtdqMethod method, cudaStream_t stream) {
    auto const addresses =
        reinterpret_cast<uintptr_t>(arguments.x) | reinterpret_cast<uintptr_t>(arguments.y);
    if (addresses % sizeof(T) != 0) {
        return cudaErrorMisalignedAddress;
    }
    Device device{};
    cudaError_t const error = find_device(device);
    if (error != cudaSuccess) {
        return error;
    }
    bool const is_aligned = addresses % kVectorBytes == 0;
    if constexpr (sizeof(T) == 2) {
        bool const is_possible =
            is_aligned && device.shared_bytes >= kLookupBytes + kLookupCellBytes;
        bool const is_wanted =
            method == HtdqMethod::kLookup ||
            (method == HtdqMethod::kFastest && is_lookup_faster(device, arguments.count));
        if (is_possible && is_wanted) {
            return launch_lookup<T>(device, arguments, stream);
        }
    }
    if (method == HtdqMethod::kLookup) {
        return cudaErrorNotSupported;
    }
    return is_aligned ? launch_search<T, kVectorBytes / sizeof(T)>(device, arguments, stream)
                      : launch_search<T, 1>(device, arguments, stream);
}

}  // namespace

cudaError_t htdq_launch(HtdqTable const& table, HtdqType type, void const* x, void* y,
                        int64_t count, cudaStream_t stream, HtdqMethod method) noexcept {
    if (count == 0) {
        return cudaSuccess;
    }
    bool const table_is_valid = table.depth >= 1 && table.depth <= kMaxDepth;
    if (count < 0 || x == nullptr || y == nullptr || !table_is_valid) {
        return cudaErrorInvalidValue;
    }
    Arguments arguments{table, x, y, count};
    switch (type) {
        case HtdqType::kFloat32:
            return launch_typed<float>(arguments, method, stream);
        case HtdqType::kFloat16:
            return launch_typed<__half>(arguments, method, stream);
        case HtdqType::kBFloat16:
            return launch_typed<__nv_bfloat16>(arguments, method, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace qvd
