"""TensorRT engines: which TensorRT is installed, building, running, and what a build chose."""
