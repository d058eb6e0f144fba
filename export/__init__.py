"""From a float ONNX denoiser and a quantization plan to a QDQ ONNX model."""
