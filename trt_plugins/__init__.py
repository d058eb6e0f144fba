"""TensorRT plugins of qvd-trt."""
