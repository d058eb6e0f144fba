// What TensorRT 8.6 and 9 see of the library.

#include <NvInferRuntime.h>

#include <array>

#include "tensorrt/htdq_v2.h"
#include "tensorrt/plugin_log.h"
#include "tensorrt/plugin_names.h"
#include "tensorrt/symbols.h"

#define QVD_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

qvd::HtdqCreatorV2& creator() {
    static qvd::HtdqCreatorV2 instance;
    return instance;
}

// `trtexec --plugins` and Polygraphy only dlopen the library and expect that it registers itself.
bool registered_on_load = [] {
    nvinfer1::IPluginRegistry* const registry = qvd::find_plugin_registry();
    if (registry == nullptr) {
        qvd::log_error("not registered, because libnvinfer is not loaded yet");
        return false;
    }
    return registry->registerCreator(creator(), qvd::kPluginNamespace);
}();

}  // namespace

// For IPluginRegistry::loadLibrary, which registers what it gets and fails on what it has already.
QVD_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& n_creators) {
    static std::array<nvinfer1::IPluginCreator*, 1> const creators{&creator()};
    if (registered_on_load) {
        registered_on_load = !qvd::find_plugin_registry()->deregisterCreator(creator());
    }
    n_creators = static_cast<int32_t>(creators.size());
    return creators.data();
}

QVD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    qvd::set_logger_finder(finder);
}
