// The library's plugin, driven as TensorRT 8.6 and 9 drive it.
#pragma once

#include <memory>

#include "fakes.h"

struct Destroy {
    void operator()(nvinfer1::IPluginV2DynamicExt* plugin) const { plugin->destroy(); }
};

class PluginCreator {
  public:
    using Plugin = std::unique_ptr<nvinfer1::IPluginV2DynamicExt, Destroy>;

    explicit PluginCreator(Library const& library) {
        using GetCreators = nvinfer1::IPluginCreator* const*(int32_t&);
        creator_ = library.function<GetCreators>("getPluginCreators")(n_creators)[0];
    }

    std::string name() const { return creator_->getPluginName(); }
    std::string version() const { return creator_->getPluginVersion(); }
    std::string name_space() const { return creator_->getPluginNamespace(); }
    nvinfer1::PluginFieldCollection fields() const { return *creator_->getFieldNames(); }

    Plugin create(std::vector<nvinfer1::PluginField> const& fields) const {
        nvinfer1::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()),
                                                         fields.data()};
        return owned(creator_->createPlugin("node", &collection));
    }

    // What happens between building an engine and running it.
    Plugin through_engine(Plugin built) const {
        Plugin const built_clone(built->clone());
        built.reset();
        std::vector<char> engine(built_clone->getSerializationSize());
        built_clone->serialize(engine.data());
        if (creator_->deserializePlugin("node", engine.data(), engine.size() - 1) != nullptr) {
            throw std::runtime_error("a truncated engine was accepted");
        }
        Plugin read = owned(creator_->deserializePlugin("node", engine.data(), engine.size()));
        if (read != nullptr && read->initialize() != 0) {
            throw std::runtime_error("the plugin could not be initialized");
        }
        return Plugin(read->clone());
    }

    static int output_type(nvinfer1::IPluginV2DynamicExt& plugin, nvinfer1::DataType type) {
        return static_cast<int>(plugin.getOutputDataType(0, &type, 1));
    }

    static bool keeps_shape(nvinfer1::IPluginV2DynamicExt& plugin) {
        OpaqueShape const input;
        UnusedExprBuilder builder;
        return input.equals(plugin.getOutputDimensions(0, &input.dims, 1, builder));
    }

    static bool supports(nvinfer1::IPluginV2DynamicExt& plugin, int32_t position,
                         nvinfer1::PluginTensorDesc const (&tensors)[2]) {
        return plugin.supportsFormatCombination(position, tensors, 1, 1);
    }

    // This interface has none.
    static std::string timing_cache_id(nvinfer1::IPluginV2DynamicExt&) { return ""; }

    static int32_t enqueue(nvinfer1::IPluginV2DynamicExt& plugin,
                           nvinfer1::PluginTensorDesc const& desc, void const* x, void* y,
                           cudaStream_t stream) {
        return plugin.enqueue(&desc, &desc, &x, &y, nullptr, stream);
    }

    int32_t n_creators = 0;

  private:
    // The creator's declared type is an old base; what it creates is a dynamic plugin.
    template <typename Base>
    static Plugin owned(Base* plugin) {
        return Plugin(static_cast<nvinfer1::IPluginV2DynamicExt*>(plugin));
    }

    nvinfer1::IPluginCreator* creator_;
};
