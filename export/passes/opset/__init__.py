"""Another opset of the default domain, and what the ONNX schemas say of a node."""
