"""The TensorRT plugin ``qvd::HTDQ``: its CUDA sources, and how to build and find the library.

Models need no plugin: an HTDQ node carries its own body in standard ONNX. With the library loaded,
TensorRT runs the node as one kernel with the same results, bit for bit.

    python -m qvd_trt.trt_plugins build --tensorrt-root /opt/TensorRT-10.7
    trtexec --onnx=model.onnx --stronglyTyped --dynamicPlugins=$(python -m qvd_trt.trt_plugins path)

``src/htdq/kernel.h`` is the kernel's interface, free of TensorRT. README.md in this folder says how
each version of TensorRT loads the library.
"""
