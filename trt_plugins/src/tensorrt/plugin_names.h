// How TensorRT's registry and the ONNX node name the plugin.
#pragma once

namespace qvd {

constexpr char const* kPluginName = "HTDQ";
constexpr char const* kPluginVersion = "1";
constexpr char const* kPluginNamespace = "qvd";
constexpr char const* kLevels = "levels";
constexpr char const* kThresholds = "thresholds";

}  // namespace qvd
