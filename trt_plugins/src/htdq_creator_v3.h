// Creates HTDQ plugins for TensorRT 10 and 11.
#pragma once

#include <NvInferRuntime.h>

#include "plugin_fields.h"

namespace qvd {

class HtdqCreatorV3 final : public nvinfer1::IPluginCreatorV3One {
  public:
    HtdqCreatorV3();

    // Returns null, and logs why, when the attributes are not a codebook. The fields are the same
    // when the node is parsed and when an engine is read.
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name,
                                      nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

  private:
    CodebookFields names_;
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace qvd
