// The library's plugin, driven as TensorRT 10 and 11 drive it.
#pragma once

#include <memory>

#include "fakes.h"

class PluginCreator {
  public:
    using Plugin = std::unique_ptr<nvinfer1::IPluginV3>;

    explicit PluginCreator(Library const& library) {
        using GetCreators = nvinfer1::IPluginCreatorInterface* const*(int32_t&);
        auto* const creators = library.function<GetCreators>("getCreators")(n_creators);
        creator_ = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[0]);
    }

    std::string name() const { return creator_->getPluginName(); }
    std::string version() const { return creator_->getPluginVersion(); }
    std::string name_space() const { return creator_->getPluginNamespace(); }
    nvinfer1::PluginFieldCollection fields() const { return *creator_->getFieldNames(); }

    Plugin create(std::vector<nvinfer1::PluginField> const& fields) const {
        return create({static_cast<int32_t>(fields.size()), fields.data()},
                      nvinfer1::TensorRTPhase::kBUILD);
    }

    // What happens between building an engine and running it.
    Plugin through_engine(Plugin built) const {
        Plugin const built_clone(built->clone());
        built.reset();
        auto* const runtime = runtime_of(*built_clone);
        Plugin const read =
            create(*runtime->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME);
        return Plugin(runtime_of(*read)->attachToContext(nullptr));
    }

    static int output_type(nvinfer1::IPluginV3& plugin, nvinfer1::DataType type) {
        nvinfer1::DataType output{};
        int32_t const status = build_of(plugin)->getOutputDataTypes(&output, 1, &type, 1);
        return status == 0 ? static_cast<int>(output) : -1;
    }

    static bool keeps_shape(nvinfer1::IPluginV3& plugin) {
        OpaqueShape const input;
        nvinfer1::DimsExprs output{};
        UnusedExprBuilder builder;
        auto* const build = build_of(plugin);
        return build->getOutputShapes(&input.dims, 1, nullptr, 0, &output, 1, builder) == 0 &&
               input.equals(output);
    }

    static bool supports(nvinfer1::IPluginV3& plugin, int32_t position,
                         nvinfer1::PluginTensorDesc const (&tensors)[2]) {
        nvinfer1::DynamicPluginTensorDesc dynamic[2]{};
        dynamic[0].desc = tensors[0];
        dynamic[1].desc = tensors[1];
        return build_of(plugin)->supportsFormatCombination(position, dynamic, 1, 1);
    }

    static std::string timing_cache_id(nvinfer1::IPluginV3& plugin) {
        return build_of(plugin)->getTimingCacheID();
    }

    static int32_t enqueue(nvinfer1::IPluginV3& plugin, nvinfer1::PluginTensorDesc const& desc,
                           void const* x, void* y, cudaStream_t stream) {
        auto* const runtime = runtime_of(plugin);
        int32_t const status = runtime->onShapeChange(&desc, 1, &desc, 1);
        return status != 0 ? status : runtime->enqueue(&desc, &desc, &x, &y, nullptr, stream);
    }

    int32_t n_creators = 0;

  private:
    Plugin create(nvinfer1::PluginFieldCollection const& fields,
                  nvinfer1::TensorRTPhase phase) const {
        return Plugin(creator_->createPlugin("node", &fields, phase));
    }
    static nvinfer1::IPluginV3OneBuild* build_of(nvinfer1::IPluginV3& plugin) {
        return static_cast<nvinfer1::IPluginV3OneBuild*>(
            plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
    }
    static nvinfer1::IPluginV3OneRuntime* runtime_of(nvinfer1::IPluginV3& plugin) {
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(
            plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    }

    nvinfer1::IPluginCreatorV3One* creator_;
};
