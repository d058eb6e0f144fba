// What TensorRT 10 and 11 see of the library.

#include <NvInferRuntime.h>

#include <array>
#include <cstdlib>
#include <string_view>

#include "tensorrt/htdq_v3.h"
#include "tensorrt/plugin_log.h"
#include "tensorrt/plugin_names.h"
#include "tensorrt/symbols.h"

#define QVD_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

qvd::HtdqCreatorV3& creator() {
    static qvd::HtdqCreatorV3 instance;
    return instance;
}

// `trtexec --dynamicPlugins` and IPluginRegistry::loadLibrary register what getCreators() returns,
// and fail when it is registered already. Programs that only dlopen the library (Polygraphy) ask
// for it with this variable.
[[maybe_unused]] bool const registered_on_load = [] {
    char const* const variable = std::getenv("QVD_TRT_REGISTER_ON_LOAD");
    if (variable == nullptr || std::string_view(variable) != "1") {
        return false;
    }
    nvinfer1::IPluginRegistry* const registry = qvd::find_plugin_registry();
    if (registry == nullptr) {
        qvd::log_error("not registered, because libnvinfer is not loaded yet");
        return false;
    }
    return registry->registerCreator(creator(), qvd::kPluginNamespace);
}();

}  // namespace

QVD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& n_creators) {
    static std::array<nvinfer1::IPluginCreatorInterface*, 1> const creators{&creator()};
    n_creators = static_cast<int32_t>(creators.size());
    return creators.data();
}

QVD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    qvd::set_logger_finder(finder);
}
