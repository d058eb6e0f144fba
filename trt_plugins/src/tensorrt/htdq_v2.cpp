#include "tensorrt/htdq_v2.h"

#include <cstring>
#include <exception>
#include <memory>
#include <utility>

#include "tensorrt/plugin_log.h"
#include "tensorrt/plugin_names.h"
#include "tensorrt/plugin_tensors.h"

namespace qvd {
namespace {

// What an engine holds: this, the levels, the thresholds.
struct SerializedHeader {
    char name[4];
    int32_t version;
    int32_t n_levels;
};

constexpr SerializedHeader kHeader{{'H', 'T', 'D', 'Q'}, 1, 0};

size_t serialized_size(int32_t n_levels) {
    return sizeof(SerializedHeader) + (2 * static_cast<size_t>(n_levels) - 1) * sizeof(float);
}

bool read_serialized(void const* data, size_t length, HtdqCodebook& codebook, std::string& error) {
    SerializedHeader header{};
    error = "the engine holds another version of this plugin";
    if (data == nullptr || length < sizeof(header)) {
        return false;
    }
    std::memcpy(&header, data, sizeof(header));
    if (std::memcmp(header.name, kHeader.name, sizeof(header.name)) != 0 ||
        header.version != kHeader.version || header.n_levels < kMinLevels ||
        header.n_levels > kMaxLevels || length != serialized_size(header.n_levels)) {
        return false;
    }
    std::vector<float> values(2 * static_cast<size_t>(header.n_levels) - 1);
    std::memcpy(values.data(), static_cast<char const*>(data) + sizeof(header),
                values.size() * sizeof(float));
    return make_codebook({values.data(), header.n_levels},
                         {values.data() + header.n_levels, header.n_levels - 1}, codebook, error);
}

}  // namespace

HtdqPluginV2::HtdqPluginV2(HtdqCodebook codebook)
    : codebook_(std::move(codebook)), namespace_(kPluginNamespace) {}

HtdqPluginV2* HtdqPluginV2::deserialize(void const* data, size_t length) noexcept {
    try {
        HtdqCodebook codebook;
        std::string error;
        if (read_serialized(data, length, codebook, error)) {
            return new HtdqPluginV2(std::move(codebook));
        }
        log_error(error.c_str());
    } catch (std::exception const& error) {
        log_error(error.what());
    }
    return nullptr;
}

nvinfer1::AsciiChar const* HtdqPluginV2::getPluginType() const noexcept {
    return kPluginName;
}

nvinfer1::AsciiChar const* HtdqPluginV2::getPluginVersion() const noexcept {
    return kPluginVersion;
}

nvinfer1::AsciiChar const* HtdqPluginV2::getPluginNamespace() const noexcept {
    return namespace_.c_str();
}

void HtdqPluginV2::setPluginNamespace(nvinfer1::AsciiChar const* name_space) noexcept {
    try {
        namespace_ = name_space == nullptr ? "" : name_space;
    } catch (std::exception const& error) {
        log_error(error.what());
    }
}

nvinfer1::IPluginV2DynamicExt* HtdqPluginV2::clone() const noexcept {
    try {
        auto copy = std::make_unique<HtdqPluginV2>(codebook_);
        copy->namespace_ = namespace_;
        return copy.release();
    } catch (std::exception const& error) {
        log_error(error.what());
        return nullptr;
    }
}

void HtdqPluginV2::destroy() noexcept {
    delete this;
}

int32_t HtdqPluginV2::getNbOutputs() const noexcept {
    return 1;
}

nvinfer1::DataType HtdqPluginV2::getOutputDataType(int32_t /*index*/,
                                                   nvinfer1::DataType const* inputs,
                                                   int32_t /*n_inputs*/) const noexcept {
    return inputs[0];
}

nvinfer1::DimsExprs HtdqPluginV2::getOutputDimensions(
    int32_t /*index*/, nvinfer1::DimsExprs const* inputs, int32_t /*n_inputs*/,
    nvinfer1::IExprBuilder& /*builder*/) noexcept {
    return inputs[0];
}

bool HtdqPluginV2::supportsFormatCombination(int32_t position,
                                             nvinfer1::PluginTensorDesc const* tensors,
                                             int32_t n_inputs, int32_t n_outputs) noexcept {
    return n_inputs == 1 && n_outputs == 1 &&
           supports_tensor(position, tensors[position], tensors[0]);
}

void HtdqPluginV2::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* /*inputs*/,
                                   int32_t /*n_inputs*/,
                                   nvinfer1::DynamicPluginTensorDesc const* /*outputs*/,
                                   int32_t /*n_outputs*/) noexcept {}

size_t HtdqPluginV2::getWorkspaceSize(nvinfer1::PluginTensorDesc const* /*inputs*/,
                                      int32_t /*n_inputs*/,
                                      nvinfer1::PluginTensorDesc const* /*outputs*/,
                                      int32_t /*n_outputs*/) const noexcept {
    return 0;
}

int32_t HtdqPluginV2::initialize() noexcept {
    return 0;
}

void HtdqPluginV2::terminate() noexcept {}

int32_t HtdqPluginV2::enqueue(nvinfer1::PluginTensorDesc const* input_descs,
                              nvinfer1::PluginTensorDesc const* /*output_descs*/,
                              void const* const* inputs, void* const* outputs, void* /*workspace*/,
                              cudaStream_t stream) noexcept {
    return enqueue_htdq(codebook_.table, input_descs[0], inputs[0], outputs[0], stream);
}

size_t HtdqPluginV2::getSerializationSize() const noexcept {
    return serialized_size(static_cast<int32_t>(codebook_.levels.size()));
}

void HtdqPluginV2::serialize(void* buffer) const noexcept {
    SerializedHeader header = kHeader;
    header.n_levels = static_cast<int32_t>(codebook_.levels.size());
    auto* out = static_cast<char*>(buffer);
    auto const append = [&out](void const* data, size_t length) {
        std::memcpy(out, data, length);
        out += length;
    };
    append(&header, sizeof(header));
    append(codebook_.levels.data(), codebook_.levels.size() * sizeof(float));
    append(codebook_.thresholds.data(), codebook_.thresholds.size() * sizeof(float));
}

HtdqCreatorV2::HtdqCreatorV2()
    : names_(field_names()),
      collection_{static_cast<int32_t>(names_.size()), names_.data()},
      namespace_(kPluginNamespace) {}

nvinfer1::IPluginV2DynamicExt* HtdqCreatorV2::createPlugin(
    nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields) noexcept {
    try {
        HtdqCodebook codebook;
        std::string error;
        if (read_fields(fields, codebook, error)) {
            auto plugin = std::make_unique<HtdqPluginV2>(std::move(codebook));
            plugin->setPluginNamespace(namespace_.c_str());
            return plugin.release();
        }
        error = "node '" + std::string(name == nullptr ? "" : name) + "': " + error;
        log_error(error.c_str());
    } catch (std::exception const& error) {
        log_error(error.what());
    }
    return nullptr;
}

nvinfer1::IPluginV2DynamicExt* HtdqCreatorV2::deserializePlugin(nvinfer1::AsciiChar const* /*name*/,
                                                                void const* data,
                                                                size_t length) noexcept {
    HtdqPluginV2* const plugin = HtdqPluginV2::deserialize(data, length);
    if (plugin != nullptr) {
        plugin->setPluginNamespace(namespace_.c_str());
    }
    return plugin;
}

nvinfer1::PluginFieldCollection const* HtdqCreatorV2::getFieldNames() noexcept {
    return &collection_;
}

nvinfer1::AsciiChar const* HtdqCreatorV2::getPluginName() const noexcept {
    return kPluginName;
}

nvinfer1::AsciiChar const* HtdqCreatorV2::getPluginVersion() const noexcept {
    return kPluginVersion;
}

nvinfer1::AsciiChar const* HtdqCreatorV2::getPluginNamespace() const noexcept {
    return namespace_.c_str();
}

void HtdqCreatorV2::setPluginNamespace(nvinfer1::AsciiChar const* name_space) noexcept {
    try {
        namespace_ = name_space == nullptr ? "" : name_space;
    } catch (std::exception const& error) {
        log_error(error.what());
    }
}

}  // namespace qvd
