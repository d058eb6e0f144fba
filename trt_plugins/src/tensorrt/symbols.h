// TensorRT's few exported functions, looked up in the process instead of linked.
#pragma once

#include <NvInferRuntime.h>

namespace qvd {

// The plugin registry of the libnvinfer in this process; null when none is loaded.
nvinfer1::IPluginRegistry* find_plugin_registry() noexcept;

// The logger that this libnvinfer was first given; null when there is none.
nvinfer1::ILogger* find_global_logger() noexcept;

}  // namespace qvd
