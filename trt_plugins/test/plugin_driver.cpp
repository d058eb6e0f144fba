// Drives the plugin library through its exports, without TensorRT's runtime.
//
//     plugin_driver LIBRARY describe
//     plugin_driver LIBRARY create [NAME TYPE FILE]...
//     plugin_driver LIBRARY run LEVELS THRESHOLDS DTYPE X Y      (needs a GPU)
//
// `create` passes raw files as attributes (TYPE f32, f64 or i32) and prints "created" or "refused"
// after what was logged. DTYPE is TensorRT's number of a data type: 0 float32, 1 float16, 7 bf16.

#include <NvInferRuntime.h>

#include <cstdlib>
#include <exception>
#include <utility>

#include "cuda_check.h"
#include "files.h"
#if NV_TENSORRT_MAJOR >= 10
#include "plugin_v3.h"
#else
#include "plugin_v2.h"
#endif

namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

constexpr int kTypes = 8;
constexpr int kPoison = 0xA5;

int describe(PluginCreator const& creator) {
    std::printf("creators=%d name=%s version=%s namespace=%s\n", creator.n_creators,
                creator.name().c_str(), creator.version().c_str(), creator.name_space().c_str());
    nvinfer1::PluginFieldCollection const fields = creator.fields();
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        std::printf("field=%s type=%d\n", fields.fields[i].name,
                    static_cast<int>(fields.fields[i].type));
    }
    float const levels[] = {-1, 0, 1};
    float const thresholds[] = {-0.5, 0.5};
    auto plugin = creator.create({{"levels", levels, PluginFieldType::kFLOAT32, 3},
                                  {"thresholds", thresholds, PluginFieldType::kFLOAT32, 2}});
    plugin = creator.through_engine(std::move(plugin));
    std::printf("keeps_shape=%d timing=%s\n", PluginCreator::keeps_shape(*plugin),
                PluginCreator::timing_cache_id(*plugin).c_str());
    auto const supports = [&plugin](int32_t position, int input, int output, TensorFormat format) {
        nvinfer1::PluginTensorDesc tensors[2]{
            tensor_desc(static_cast<DataType>(input), TensorFormat::kLINEAR),
            tensor_desc(static_cast<DataType>(output), TensorFormat::kLINEAR)};
        tensors[position].format = format;
        return PluginCreator::supports(*plugin, position, tensors);
    };
    for (int type = 0; type < kTypes; ++type) {
        std::printf("type=%d input=%d packed=%d output=", type,
                    supports(0, type, type, TensorFormat::kLINEAR),
                    supports(0, type, type, TensorFormat::kCHW32));
        for (int output = 0; output < kTypes; ++output) {
            std::printf("%d", supports(0, type, type, TensorFormat::kLINEAR) &&
                                  supports(1, type, output, TensorFormat::kLINEAR));
        }
        std::printf(" becomes=%d\n",
                    PluginCreator::output_type(*plugin, static_cast<DataType>(type)));
    }
    return 0;
}

int create(PluginCreator const& creator, int argc, char** argv) {
    std::vector<std::vector<char>> data;
    std::vector<PluginField> fields;
    for (int i = 0; i + 2 < argc; i += 3) {
        std::string const type = argv[i + 1];
        size_t const size = type == "f64" ? 8 : 4;
        data.push_back(files::read<char>(argv[i + 2]));
        fields.emplace_back(argv[i], data.back().data(),
                            type == "f32"   ? PluginFieldType::kFLOAT32
                            : type == "f64" ? PluginFieldType::kFLOAT64
                                            : PluginFieldType::kINT32,
                            static_cast<int32_t>(data.back().size() / size));
    }
    std::puts(creator.create(fields) == nullptr ? "refused" : "created");
    return 0;
}

int run(PluginCreator const& creator, char** argv) {
    auto const levels = files::read<float>(argv[0]);
    auto const thresholds = files::read<float>(argv[1]);
    auto const type = static_cast<DataType>(std::atoi(argv[2]));
    auto const x = files::read<char>(argv[3]);
    auto const count = static_cast<int>(x.size() / (type == DataType::kFLOAT ? 4 : 2));

    auto plugin = creator.create(
        {{"levels", levels.data(), PluginFieldType::kFLOAT32, static_cast<int32_t>(levels.size())},
         {"thresholds", thresholds.data(), PluginFieldType::kFLOAT32,
          static_cast<int32_t>(thresholds.size())}});
    plugin = creator.through_engine(std::move(plugin));

    DeviceBuffer const device_x(x.size());
    DeviceBuffer const device_y(x.size());
    cudaStream_t stream{};
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    check(cudaMemcpy(device_x.data(), x.data(), x.size(), cudaMemcpyHostToDevice), "copy in");
    check(cudaMemset(device_y.data(), kPoison, x.size()), "poison");
    check(cudaDeviceSynchronize(), "copy in");
    int32_t const status =
        PluginCreator::enqueue(*plugin, tensor_desc(type, TensorFormat::kLINEAR, count),
                               device_x.data(), device_y.data(), stream);
    check(cudaStreamSynchronize(stream), "enqueue");
    std::vector<char> y(x.size());
    check(cudaMemcpy(y.data(), device_y.data(), y.size(), cudaMemcpyDeviceToHost), "copy out");
    check(cudaStreamDestroy(stream), "stream");
    files::write(argv[4], y);
    std::printf("status=%d\n", status);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    std::string const mode = argc < 3 ? "" : argv[2];
    try {
        if (mode == "describe" || mode == "create" || (mode == "run" && argc == 8)) {
            Library const library(argv[1]);
            PrintingLoggerFinder finder;
            library.function<void(nvinfer1::ILoggerFinder*)>("setLoggerFinder")(&finder);
            PluginCreator const creator(library);
            return mode == "describe" ? describe(creator)
                   : mode == "create" ? create(creator, argc - 3, argv + 3)
                                      : run(creator, argv + 3);
        }
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::fprintf(stderr, "usage: %s LIBRARY describe|create|run ...\n", argv[0]);
    return 2;
}
