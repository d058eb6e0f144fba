// Creates HTDQ plugins for TensorRT 8.6 and 9.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "plugin_fields.h"

namespace qvd {

class HtdqCreatorV2 final : public nvinfer1::IPluginCreator {
  public:
    HtdqCreatorV2();

    // Return null, and log why, when the attributes or the data are not a codebook.
    nvinfer1::IPluginV2DynamicExt* createPlugin(
        nvinfer1::AsciiChar const* name,
        nvinfer1::PluginFieldCollection const* fields) noexcept override;
    nvinfer1::IPluginV2DynamicExt* deserializePlugin(nvinfer1::AsciiChar const* name,
                                                     void const* data,
                                                     size_t length) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;
    void setPluginNamespace(nvinfer1::AsciiChar const* name_space) noexcept override;

  private:
    CodebookFields names_;
    nvinfer1::PluginFieldCollection collection_;
    std::string namespace_;
};

}  // namespace qvd
