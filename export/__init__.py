"""The contract: the float model, sites, the plan, and from both to a QDQ ONNX model."""
