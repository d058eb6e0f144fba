// Times the HTDQ kernel and, as its ceiling, a device-to-device copy of the same bytes.
//
// Prints one line per measurement: `type levels values method microseconds copy_microseconds
// ratio`. The method is the launcher's choice, `fastest`, or one that it chooses from; the ratio is
// of the two times. All launches are replayed from a captured graph, so that the gaps between them
// are small. The two smaller sizes stay in the cache, as they would between two layers; the others
// go through so many buffers that each is back after kRotated bytes, which no cache holds.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <random>
#include <vector>

#include "../trt_plugins/test/cuda_check.h"
#include "htdq/kernel.h"

namespace {

constexpr int kRepeats = 25;
constexpr size_t kCached = size_t{8} << 20;
constexpr size_t kRotated = size_t{1} << 30;
constexpr int kGraphLaunches = 200;

using Work = std::function<void(int, cudaStream_t)>;

// Median microseconds of one call of `work`, which is given a number that counts up.
float time_of(Work const& work, int launches, cudaStream_t stream) {
    cudaGraph_t graph{};
    cudaGraphExec_t executable{};
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin capture");
    for (int i = 0; i < launches; ++i) {
        work(i, stream);
    }
    check(cudaStreamEndCapture(stream, &graph), "end capture");
    check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
    cudaEvent_t start{};
    cudaEvent_t stop{};
    check(cudaEventCreate(&start), "event");
    check(cudaEventCreate(&stop), "event");
    std::vector<float> times;
    for (int i = 0; i < kRepeats + 3; ++i) {
        check(cudaEventRecord(start, stream), "record");
        check(cudaGraphLaunch(executable, stream), "replay");
        check(cudaEventRecord(stop, stream), "record");
        check(cudaEventSynchronize(stop), "synchronize");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, start, stop), "elapsed");
        if (i >= 3) {
            times.push_back(milliseconds * 1000 / static_cast<float>(launches));
        }
    }
    check(cudaEventDestroy(start), "event");
    check(cudaEventDestroy(stop), "event");
    check(cudaGraphExecDestroy(executable), "graph");
    check(cudaGraphDestroy(graph), "graph");
    std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
    return times[kRepeats / 2];
}

qvd::HtdqTable table_of(int32_t n_levels) {
    std::vector<float> levels;
    std::vector<float> thresholds;
    for (int32_t i = 0; i < n_levels; ++i) {
        levels.push_back(-4.0F + 8.0F * static_cast<float>(i) / static_cast<float>(n_levels));
        if (i > 0) {
            thresholds.push_back((levels[i] + levels[i - 1]) / 2);
        }
    }
    return qvd::make_htdq_table(levels.data(), thresholds.data(), n_levels);
}

float convert(float value, float) {
    return value;
}
__half convert(float value, __half) {
    return __float2half_rn(value);
}
__nv_bfloat16 convert(float value, __nv_bfloat16) {
    return __float2bfloat16_rn(value);
}

// Fills the buffer with repeated normal values.
template <typename T>
void fill(char* data, int64_t count) {
    constexpr int64_t kDistinct = int64_t{1} << 18;
    std::mt19937 generator(0);
    std::normal_distribution<float> normal(0.0F, 1.5F);
    std::vector<T> values(std::min(count, kDistinct));
    for (T& value : values) {
        value = convert(normal(generator), T{});
    }
    auto const distinct = static_cast<int64_t>(values.size());
    for (int64_t i = 0; i < count; i += distinct) {
        size_t const bytes = sizeof(T) * static_cast<size_t>(std::min(count - i, distinct));
        check(cudaMemcpy(data + i * sizeof(T), values.data(), bytes, cudaMemcpyHostToDevice),
              "copy in");
    }
}

char const* name_of(qvd::HtdqMethod method) {
    switch (method) {
        case qvd::HtdqMethod::kFastest:
            return "fastest";
        case qvd::HtdqMethod::kSearch:
            return "search";
        case qvd::HtdqMethod::kLookup:
            return "lookup";
    }
    return "";
}

template <typename T>
void measure(char const* name, qvd::HtdqType type, int32_t n_levels, int64_t count,
             std::vector<qvd::HtdqMethod> const& methods, cudaStream_t stream) {
    size_t const bytes = static_cast<size_t>(count) * sizeof(T);
    bool const is_small = bytes < kCached;
    int const buffers = is_small ? 1 : static_cast<int>((kRotated - 1) / (2 * bytes) + 1);
    DeviceBuffer const x(bytes * buffers);
    DeviceBuffer const y(bytes * buffers);
    fill<T>(x.data(), count * buffers);
    check(cudaDeviceSynchronize(), "copy in");
    qvd::HtdqTable const table = table_of(n_levels);
    Work const copy = [&](int i, cudaStream_t s) {
        size_t const at = bytes * static_cast<size_t>(i % buffers);
        check(cudaMemcpyAsync(y.data() + at, x.data() + at, bytes, cudaMemcpyDeviceToDevice, s),
              "copy");
    };
    int const launches = is_small ? kGraphLaunches : 2 * buffers;
    float const copy_time = time_of(copy, launches, stream);
    for (qvd::HtdqMethod const method : methods) {
        Work const kernel = [&](int i, cudaStream_t s) {
            size_t const at = bytes * static_cast<size_t>(i % buffers);
            check(qvd::htdq_launch(table, type, x.data() + at, y.data() + at, count, s, method),
                  "launch");
        };
        // A device without the method has no row for it.
        if (qvd::htdq_launch(table, type, x.data(), y.data(), count, stream, method) !=
            cudaErrorNotSupported) {
            float const time = time_of(kernel, launches, stream);
            std::printf("%s %d %lld %s %.3f %.3f %.3f\n", name, n_levels,
                        static_cast<long long>(count), name_of(method), time, copy_time,
                        time / copy_time);
        }
    }
}

void measure_all(cudaStream_t stream) {
    using Methods = std::vector<qvd::HtdqMethod>;
    Methods const fastest{qvd::HtdqMethod::kFastest};
    Methods const each{qvd::HtdqMethod::kSearch, qvd::HtdqMethod::kLookup};
    auto const fp32 = qvd::HtdqType::kFloat32;
    auto const fp16 = qvd::HtdqType::kFloat16;
    auto const bf16 = qvd::HtdqType::kBFloat16;
    for (int32_t const n_levels : {16, 64, 256}) {
        for (int64_t const count : {int64_t{2} * 1280, int64_t{1000} * 1280}) {
            measure<float>("fp32", fp32, n_levels, count, fastest, stream);
            measure<__half>("fp16", fp16, n_levels, count, fastest, stream);
            measure<__nv_bfloat16>("bf16", bf16, n_levels, count, fastest, stream);
        }
        constexpr int64_t kTarget = int64_t{64} << 20;  // bytes
        measure<float>("fp32", fp32, n_levels, kTarget / 4, fastest, stream);
        measure<__half>("fp16", fp16, n_levels, kTarget / 2, fastest, stream);
        measure<__nv_bfloat16>("bf16", bf16, n_levels, kTarget / 2, fastest, stream);
        // From how many values on the lookup is the faster method.
        for (int64_t const millions : {4, 8, 16, 32}) {
            measure<__half>("fp16", fp16, n_levels, millions << 20, each, stream);
        }
    }
}

}  // namespace

int main() {
    try {
        cudaStream_t stream{};
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
        measure_all(stream);
        check(cudaStreamDestroy(stream), "stream");
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
