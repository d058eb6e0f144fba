"""Drop-in denoisers for diffusers pipelines: an ONNX file or an engine in place of torch."""
