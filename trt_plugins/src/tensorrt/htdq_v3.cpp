#include "tensorrt/htdq_v3.h"

#include <exception>
#include <string>
#include <utility>

#include "tensorrt/plugin_log.h"
#include "tensorrt/plugin_names.h"
#include "tensorrt/plugin_tensors.h"

namespace qvd {
namespace {

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = 1;

int32_t check_counts(int32_t n_inputs, int32_t n_outputs) noexcept {
    if (n_inputs == 1 && n_outputs == 1) {
        return kSuccess;
    }
    log_error("the node must have one input and one output");
    return kFailure;
}

}  // namespace

// The time depends on the depth of the search only, so that all codebooks of a width share it.
HtdqPluginV3::HtdqPluginV3(HtdqCodebook codebook)
    : codebook_(std::move(codebook)),
      timing_cache_id_("depth " + std::to_string(codebook_.table.depth)),
      fields_(field_values(codebook_)),
      collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginCapability* HtdqPluginV3::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* HtdqPluginV3::clone() noexcept {
    try {
        return new HtdqPluginV3(codebook_);
    } catch (std::exception const& error) {
        log_error(error.what());
        return nullptr;
    }
}

nvinfer1::AsciiChar const* HtdqPluginV3::getPluginName() const noexcept {
    return kPluginName;
}

nvinfer1::AsciiChar const* HtdqPluginV3::getPluginVersion() const noexcept {
    return kPluginVersion;
}

nvinfer1::AsciiChar const* HtdqPluginV3::getPluginNamespace() const noexcept {
    return kPluginNamespace;
}

int32_t HtdqPluginV3::getNbOutputs() const noexcept {
    return 1;
}

int32_t HtdqPluginV3::getOutputDataTypes(nvinfer1::DataType* outputs, int32_t n_outputs,
                                         nvinfer1::DataType const* inputs,
                                         int32_t n_inputs) const noexcept {
    if (check_counts(n_inputs, n_outputs) != kSuccess) {
        return kFailure;
    }
    outputs[0] = inputs[0];
    return kSuccess;
}

int32_t HtdqPluginV3::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t n_inputs,
                                      nvinfer1::DimsExprs const* /*shape_inputs*/,
                                      int32_t /*n_shape_inputs*/, nvinfer1::DimsExprs* outputs,
                                      int32_t n_outputs,
                                      nvinfer1::IExprBuilder& /*builder*/) noexcept {
    if (check_counts(n_inputs, n_outputs) != kSuccess) {
        return kFailure;
    }
    outputs[0] = inputs[0];
    return kSuccess;
}

bool HtdqPluginV3::supportsFormatCombination(int32_t position,
                                             nvinfer1::DynamicPluginTensorDesc const* tensors,
                                             int32_t n_inputs, int32_t n_outputs) noexcept {
    return check_counts(n_inputs, n_outputs) == kSuccess &&
           supports_tensor(position, tensors[position].desc, tensors[0].desc);
}

int32_t HtdqPluginV3::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* /*inputs*/,
                                      int32_t n_inputs,
                                      nvinfer1::DynamicPluginTensorDesc const* /*outputs*/,
                                      int32_t n_outputs) noexcept {
    return check_counts(n_inputs, n_outputs);
}

char const* HtdqPluginV3::getTimingCacheID() noexcept {
    return timing_cache_id_.c_str();
}

int32_t HtdqPluginV3::onShapeChange(nvinfer1::PluginTensorDesc const* /*inputs*/, int32_t n_inputs,
                                    nvinfer1::PluginTensorDesc const* /*outputs*/,
                                    int32_t n_outputs) noexcept {
    return check_counts(n_inputs, n_outputs);
}

int32_t HtdqPluginV3::enqueue(nvinfer1::PluginTensorDesc const* input_descs,
                              nvinfer1::PluginTensorDesc const* /*output_descs*/,
                              void const* const* inputs, void* const* outputs, void* /*workspace*/,
                              cudaStream_t stream) noexcept {
    return enqueue_htdq(codebook_.table, input_descs[0], inputs[0], outputs[0], stream);
}

nvinfer1::IPluginV3* HtdqPluginV3::attachToContext(
    nvinfer1::IPluginResourceContext* /*context*/) noexcept {
    return clone();
}

nvinfer1::PluginFieldCollection const* HtdqPluginV3::getFieldsToSerialize() noexcept {
    return &collection_;
}

HtdqCreatorV3::HtdqCreatorV3()
    : names_(field_names()), collection_{static_cast<int32_t>(names_.size()), names_.data()} {}

nvinfer1::IPluginV3* HtdqCreatorV3::createPlugin(nvinfer1::AsciiChar const* name,
                                                 nvinfer1::PluginFieldCollection const* fields,
                                                 nvinfer1::TensorRTPhase /*phase*/) noexcept {
    try {
        HtdqCodebook codebook;
        std::string error;
        if (read_fields(fields, codebook, error)) {
            return new HtdqPluginV3(std::move(codebook));
        }
        error = "node '" + std::string(name == nullptr ? "" : name) + "': " + error;
        log_error(error.c_str());
    } catch (std::exception const& error) {
        log_error(error.what());
    }
    return nullptr;
}

nvinfer1::PluginFieldCollection const* HtdqCreatorV3::getFieldNames() noexcept {
    return &collection_;
}

nvinfer1::AsciiChar const* HtdqCreatorV3::getPluginName() const noexcept {
    return kPluginName;
}

nvinfer1::AsciiChar const* HtdqCreatorV3::getPluginVersion() const noexcept {
    return kPluginVersion;
}

nvinfer1::AsciiChar const* HtdqCreatorV3::getPluginNamespace() const noexcept {
    return kPluginNamespace;
}

}  // namespace qvd
