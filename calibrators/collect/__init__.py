"""Statistics reduced inside an ONNX Runtime graph."""
