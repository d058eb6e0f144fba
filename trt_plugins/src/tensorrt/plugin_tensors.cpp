#include "tensorrt/plugin_tensors.h"

#include "htdq/kernel.h"
#include "tensorrt/plugin_log.h"

namespace qvd {
namespace {

using nvinfer1::DataType;

bool find_type(DataType type, HtdqType& found) noexcept {
    switch (type) {
        case DataType::kFLOAT:
            found = HtdqType::kFloat32;
            return true;
        case DataType::kHALF:
            found = HtdqType::kFloat16;
            return true;
#if NV_TENSORRT_MAJOR >= 9
        case DataType::kBF16:
            found = HtdqType::kBFloat16;
            return true;
#endif
        default:
            return false;
    }
}

int64_t element_count(nvinfer1::Dims const& dims) noexcept {
    int64_t count = 1;
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        count *= dims.d[i];
    }
    return count;
}

}  // namespace

bool supports_tensor(int32_t position, nvinfer1::PluginTensorDesc const& tensor,
                     nvinfer1::PluginTensorDesc const& input) noexcept {
    HtdqType type{};
    bool const is_known =
        position == 0 ? find_type(tensor.type, type) : position == 1 && tensor.type == input.type;
    return is_known && tensor.format == nvinfer1::TensorFormat::kLINEAR;
}

int32_t enqueue_htdq(HtdqTable const& table, nvinfer1::PluginTensorDesc const& input, void const* x,
                     void* y, cudaStream_t stream) noexcept {
    HtdqType type{};
    cudaError_t error = cudaErrorInvalidValue;
    if (find_type(input.type, type)) {
        error = htdq_launch(table, type, x, y, element_count(input.dims), stream);
    }
    if (error != cudaSuccess) {
        log_error("the kernel could not be launched: ", cudaGetErrorString(error));
    }
    return static_cast<int32_t>(error);
}

}  // namespace qvd
