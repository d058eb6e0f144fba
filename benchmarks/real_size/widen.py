"""A quantized file of a narrow model, as the same quantization of the wide one; without weights.

ModelOpt holds the model several times: the UNet of make_models.py would need more than 20 GB.
So it runs on a model of half the width and half the heads (all sequence lengths and head sizes are
the real ones), whose graph is otherwise the same node for node. Here each initializer is
exchanged for the one that the wide model's node has in its place, and scales per channel get its
channels. Which tensors have Q and DQ is ModelOpt's own decision; of its numbers only the values of
scales are lost, which latency does not depend on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
from onnx import NodeProto, TensorProto, numpy_helper

SMALL = 1 << 15
_QDQ = ("QuantizeLinear", "DequantizeLinear")


class WidenError(ValueError):
    """The two models differ by more than their widths."""


def widen(quantized: Path, narrow: Path, wide: Path, target: Path) -> None:
    """Write the wide model's quantized graph.

    Args:
        quantized: The narrow model after quantization.
        narrow: The narrow float model, of the same opset.
        wide: The wide float model, of the same opset; its small tensors are read.
        target: Where to write; large tensors refer to data that does not exist.

    Raises:
        WidenError: the graphs do not correspond.
    """
    model, small, large = (
        onnx.load(str(path), load_external_data=False) for path in (quantized, narrow, wide)
    )
    _check_nodes(model, small, large)
    tensors = {tensor.name: tensor for tensor in large.graph.initializer}
    own = {tensor.name: tensor for tensor in model.graph.initializer}
    # By place: the exporter numbers names, and merges equal initializers up to some size.
    slots = {
        (node.name, slot): name
        for node, counterpart in zip(small.graph.node, large.graph.node, strict=True)
        for slot, name in enumerate(counterpart.input)
        if name in tensors
    }
    chains = {out: node for node in model.graph.node if node.op_type in _QDQ for out in node.output}
    kept: dict[str, TensorProto] = {}
    for node in model.graph.node:
        if node.op_type in _QDQ:
            continue
        for slot, name in enumerate(node.input):
            if (node.name, slot) not in slots:
                continue
            source = tensors[slots[node.name, slot]]
            chain = _chain(name, chains)
            if not chain:
                node.input[slot] = f"wide/{source.name}"
                kept[node.input[slot]] = _renamed(source, node.input[slot])
                continue
            root = chain[-1].input[0]
            kept[root] = _renamed(source, root)
            for link in chain:
                axis = next((entry.i for entry in link.attribute if entry.name == "axis"), 1)
                for parameter in link.input[1:]:
                    count = source.dims[axis] if np.prod(own[parameter].dims) > 1 else None
                    kept[parameter] = _spread(_readable(own[parameter], quantized.parent), count)
    for node in model.graph.node:
        for name in node.input:
            if name in own and name not in kept:
                kept[name] = _scalar(own[name], quantized.parent)
    tensors_kept = [_readable(tensor, wide.parent) for tensor in kept.values()]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(tensors_kept)
    model.graph.ClearField("value_info")
    onnx.save(model, str(target))


def _check_nodes(model: onnx.ModelProto, small: onnx.ModelProto, large: onnx.ModelProto) -> None:
    """All nodes but Q and DQ are the float models', which are alike."""
    if [_signature(node)[1:] for node in small.graph.node] != [
        _signature(node)[1:] for node in large.graph.node
    ]:
        raise WidenError("the float graphs differ")
    expected = [_signature(node) for node in small.graph.node]
    found = sorted(_signature(node) for node in model.graph.node if node.op_type not in _QDQ)
    if found != sorted(expected):
        extra = set(found) ^ set(expected)
        raise WidenError(f"nodes of one graph only: {sorted(map(str, extra))[:6]}")


def _signature(node: NodeProto) -> tuple[str, str, bytes]:
    attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
    return node.name, node.op_type, b"|".join(attributes)


def _chain(name: str, producers: dict[str, NodeProto]) -> list[NodeProto]:
    """The Q and DQ nodes between an initializer and a node, last one first."""
    chain = []
    while name in producers:
        chain.append(producers[name])
        name = producers[name].input[0]
    return chain


def _renamed(tensor: TensorProto, name: str) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _spread(tensor: TensorProto, count: int | None) -> TensorProto:
    """A scale or zero point per channel with this many channels, all like the first."""
    if count is None:
        return tensor
    value = numpy_helper.to_array(tensor).reshape(-1)[0]
    return numpy_helper.from_array(np.full(count, value), tensor.name)


def _scalar(tensor: TensorProto, folder: Path) -> TensorProto:
    if np.prod(tensor.dims, dtype=np.int64) > 1:
        raise WidenError(f"{tensor.name} {list(tensor.dims)} has no counterpart")
    return _readable(tensor, folder)


def _readable(tensor: TensorProto, folder: Path) -> TensorProto:
    """The tensor itself; one with few elements with its data inside."""
    few = np.prod(tensor.dims, dtype=np.int64) <= SMALL
    if tensor.data_location == TensorProto.EXTERNAL and few:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return tensor
