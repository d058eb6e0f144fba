// What both plugin interfaces ask about tensors.
#pragma once

#include <NvInferRuntime.h>

#include "htdq/table.h"

namespace qvd {

// Whether the tensor at `position` (0 the input, 1 the output) is of a type and format that the
// kernel takes: linear, and the output's type is the input's.
bool supports_tensor(int32_t position, nvinfer1::PluginTensorDesc const& tensor,
                     nvinfer1::PluginTensorDesc const& input) noexcept;

// Launches the kernel on one tensor; returns 0, or logs the error and returns another number.
int32_t enqueue_htdq(HtdqTable const& table, nvinfer1::PluginTensorDesc const& input, void const* x,
                     void* y, cudaStream_t stream) noexcept;

}  // namespace qvd
