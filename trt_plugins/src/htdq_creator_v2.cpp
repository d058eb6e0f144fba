#include "htdq_creator_v2.h"

#include <exception>
#include <memory>
#include <utility>

#include "htdq_plugin_v2.h"
#include "plugin_log.h"
#include "plugin_names.h"

namespace qvd {

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
