#include "tensorrt/symbols.h"

#include <dlfcn.h>

#include <string>

namespace qvd {
namespace {

// Whoever loads a plugin has loaded libnvinfer before, but often privately (trtexec and Python do),
// where the default search does not see it.
void* find_symbol(char const* name) {
    if (void* const symbol = dlsym(RTLD_DEFAULT, name)) {
        return symbol;
    }
    static std::string const library = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
    void* const loaded = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (loaded == nullptr) {
        return nullptr;
    }
    void* const symbol = dlsym(loaded, name);
    dlclose(loaded);
    return symbol;
}

}  // namespace

nvinfer1::IPluginRegistry* find_plugin_registry() noexcept {
    using Function = nvinfer1::IPluginRegistry* (*)();
    auto const function = reinterpret_cast<Function>(find_symbol("getPluginRegistry"));
    return function == nullptr ? nullptr : function();
}

nvinfer1::ILogger* find_global_logger() noexcept {
    using Function = nvinfer1::ILogger* (*)();
    auto const function = reinterpret_cast<Function>(find_symbol("getLogger"));
    return function == nullptr ? nullptr : function();
}

}  // namespace qvd
