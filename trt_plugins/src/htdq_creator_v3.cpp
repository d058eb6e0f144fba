#include "htdq_creator_v3.h"

#include <exception>
#include <string>
#include <utility>

#include "htdq_plugin_v3.h"
#include "plugin_log.h"
#include "plugin_names.h"

namespace qvd {

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
