"""INT8 ranges on a parsed network of TensorRT 8, in place of Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNUSED_RANGE = 1.0
"""Without a range of its output TensorRT hardly takes a layer for INT8; floats do not use it."""


def set_ranges(trt: Any, network: Any, ranges: Mapping[str, float]) -> list[str]:
    """Let convolutions run in INT8, with float32 results.

    A result in INT8 would need a range that nobody calibrated, and round the residual stream.

    Args:
        trt: The module.
        network: As parsed from a file without Q/DQ.
        ranges: ``{Conv node: largest magnitude of its input}``.

    Returns:
        The nodes that the network has no convolution of.
    """
    convolutions = [
        layer
        for layer in map(network.get_layer, range(network.num_layers))
        if layer.type == trt.LayerType.CONVOLUTION and layer.name in ranges
    ]
    largest: dict[str, float] = {}
    for layer in convolutions:
        source = layer.get_input(0)
        largest[source.name] = max(largest.get(source.name, 0.0), ranges[layer.name])
        source.dynamic_range = (-largest[source.name], largest[source.name])
    for layer in convolutions:
        result = layer.get_output(0)
        if result.name not in largest:
            result.dynamic_range = (-UNUSED_RANGE, UNUSED_RANGE)
        layer.set_output_type(0, trt.float32)
    return sorted({*ranges} - {layer.name for layer in convolutions})
