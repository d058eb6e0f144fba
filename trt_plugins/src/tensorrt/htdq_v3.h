// HTDQ as a plugin of TensorRT 10 and 11, and what creates it.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "htdq/codebook.h"
#include "tensorrt/plugin_fields.h"

namespace qvd {

class HtdqPluginV3 final : public nvinfer1::IPluginV3,
                           public nvinfer1::IPluginV3OneCore,
                           public nvinfer1::IPluginV3OneBuild,
                           public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit HtdqPluginV3(HtdqCodebook codebook);
    HtdqPluginV3(HtdqPluginV3 const&) = delete;
    HtdqPluginV3& operator=(HtdqPluginV3 const&) = delete;
    ~HtdqPluginV3() override = default;

    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t n_outputs,
                               nvinfer1::DataType const* inputs,
                               int32_t n_inputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t n_inputs,
                            nvinfer1::DimsExprs const* shape_inputs, int32_t n_shape_inputs,
                            nvinfer1::DimsExprs* outputs, int32_t n_outputs,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position,
                                   nvinfer1::DynamicPluginTensorDesc const* tensors,
                                   int32_t n_inputs, int32_t n_outputs) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t n_inputs,
                            nvinfer1::DynamicPluginTensorDesc const* outputs,
                            int32_t n_outputs) noexcept override;
    char const* getTimingCacheID() noexcept override;

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t n_inputs,
                          nvinfer1::PluginTensorDesc const* outputs,
                          int32_t n_outputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* input_descs,
                    nvinfer1::PluginTensorDesc const* output_descs, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

  private:
    HtdqCodebook codebook_;
    std::string timing_cache_id_;
    CodebookFields fields_;
    nvinfer1::PluginFieldCollection collection_;
};

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
