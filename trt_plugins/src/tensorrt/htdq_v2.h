// HTDQ as a plugin of TensorRT 8.6 and 9, and what creates it.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "htdq/codebook.h"
#include "tensorrt/plugin_fields.h"

namespace qvd {

class HtdqPluginV2 final : public nvinfer1::IPluginV2DynamicExt {
  public:
    explicit HtdqPluginV2(HtdqCodebook codebook);
    HtdqPluginV2(HtdqPluginV2 const&) = delete;
    HtdqPluginV2& operator=(HtdqPluginV2 const&) = delete;

    // Reads what serialize() wrote; returns null, and logs why, when it is something else.
    static HtdqPluginV2* deserialize(void const* data, size_t length) noexcept;

    nvinfer1::AsciiChar const* getPluginType() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;
    void setPluginNamespace(nvinfer1::AsciiChar const* name_space) noexcept override;
    nvinfer1::IPluginV2DynamicExt* clone() const noexcept override;
    void destroy() noexcept override;

    int32_t getNbOutputs() const noexcept override;
    nvinfer1::DataType getOutputDataType(int32_t index, nvinfer1::DataType const* inputs,
                                         int32_t n_inputs) const noexcept override;
    nvinfer1::DimsExprs getOutputDimensions(int32_t index, nvinfer1::DimsExprs const* inputs,
                                            int32_t n_inputs,
                                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::PluginTensorDesc const* tensors,
                                   int32_t n_inputs, int32_t n_outputs) noexcept override;
    void configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t n_inputs,
                         nvinfer1::DynamicPluginTensorDesc const* outputs,
                         int32_t n_outputs) noexcept override;
    size_t getWorkspaceSize(nvinfer1::PluginTensorDesc const* inputs, int32_t n_inputs,
                            nvinfer1::PluginTensorDesc const* outputs,
                            int32_t n_outputs) const noexcept override;

    int32_t initialize() noexcept override;
    void terminate() noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* input_descs,
                    nvinfer1::PluginTensorDesc const* output_descs, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    size_t getSerializationSize() const noexcept override;
    void serialize(void* buffer) const noexcept override;

  private:
    HtdqCodebook codebook_;
    std::string namespace_;
};

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
