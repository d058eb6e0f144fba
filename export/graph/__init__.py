"""What a float ONNX graph holds: layers, quantization sites, temporal features."""
