"""A written file's multiply-accumulates, counted on its graph without control flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from qvd_trt.export.arrays import AnyArray

_MULTIPLY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")


def run(
    model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, AnyArray]
) -> dict[str, Any]:
    """Any tensors of a model, every node executed as written."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(probed.SerializeToString(), options, ["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    fed = {name: array for name, array in feeds.items() if name in known}
    return dict(zip(names, session.run(list(names), fed), strict=True))


def macs(model: onnx.ModelProto, feeds: Mapping[str, AnyArray]) -> tuple[float, float]:
    """Multiply-accumulates of one call: those of int8 with int8, and of all nodes with weights.

    A weight depends on no input. Int8 is what comes from a DequantizeLinear.
    """
    flat = _without_control_flow(model, feeds)
    changing = {value.name for value in flat.graph.input}
    changing -= {tensor.name for tensor in flat.graph.initializer}
    producers = {name: node for node in flat.graph.node for name in node.output}
    layers = []
    for node in flat.graph.node:
        if changing & set(node.input):
            changing |= set(node.output)
            if node.op_type in _MULTIPLY and len(changing & set(node.input[:2])) == 1:
                layers.append(node)
    read = {name for node in layers for name in (*node.input[:2], node.output[0])}
    stored = {tensor.name: tensor for tensor in flat.graph.initializer}
    fed = read & feeds.keys()
    values = run(flat, sorted(read - stored.keys() - fed), feeds) | {n: feeds[n] for n in fed}
    shapes = {name: list(array.shape) for name, array in values.items()}
    shapes |= {name: list(stored[name].dims) for name in read & stored.keys()}
    int8 = whole = 0.0
    for node in layers:
        cost = _cost(node, *(shapes[name] for name in (*node.input[:2], node.output[0])))
        operands = [producers.get(name) for name in node.input[:2]]
        whole += cost
        if all(p is not None and p.op_type == "DequantizeLinear" for p in operands):
            int8 += cost
    return int8, whole


def _cost(node: onnx.NodeProto, left: list[int], right: list[int], out: list[int]) -> float:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        return float(np.prod(out) * np.prod(right[1:]))
    if node.op_type == "ConvTranspose":  # every input element meets every tap
        return float(np.prod(left) * np.prod(right[1:]))
    if node.op_type == "Gemm":
        return float(np.prod(out) * left[0 if attributes.get("transA") else 1])
    if node.op_type == "MatMul":
        return float(np.prod(out) * left[-1])
    terms = attributes["equation"].decode().replace(" ", "").split("->")[0].split(",")
    extents: dict[str, int] = {}
    for term, shape in zip(terms, (left, right), strict=True):
        labels = term.replace("...", "ABCDEF"[: len(shape) - len(term.replace("...", ""))])
        extents |= dict(zip(labels, shape, strict=True))
    return float(np.prod(list(extents.values())))


def _without_control_flow(model: onnx.ModelProto, feeds: Mapping[str, AnyArray]) -> onnx.ModelProto:
    """The nodes that one call runs, in a row: the branches taken, and the trips of the loops."""
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    del flat.graph.value_info[:]
    count = 0
    while True:
        index = next(
            (i for i, n in enumerate(flat.graph.node) if n.op_type in ("If", "Loop", "Scan")), None
        )
        if index is None:
            for node in flat.graph.node:
                node.name = ""
            return flat
        node = flat.graph.node[index]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        new: list[onnx.NodeProto] = []
        if node.op_type == "If":
            (taken,) = _values(flat, node.input[:1], feeds)
            body = attributes["then_branch" if taken else "else_branch"]
            results = _inline(flat, body, [], new, f"if{count}")
            new += [_identity(*pair) for pair in zip(results, node.output, strict=True)]
        elif node.op_type == "Loop":
            (trips,) = _values(flat, node.input[:1], feeds)
            carried = [node.input[2]]
            for trip in range(int(trips)):
                carried = _inline(
                    flat, attributes["body"], ["", "", *carried], new, f"loop{count}.{trip}"
                )[1:]
            new.append(_identity(carried[0], node.output[0]))
        else:
            (scanned,) = _values(flat, node.input[:1], feeds)
            rows = []
            axis = f"scan{count}.axis"
            flat.graph.initializer.append(numpy_helper.from_array(np.array([0]), axis))
            for trip in range(len(scanned)):
                at = f"scan{count}.{trip}"
                flat.graph.initializer.append(numpy_helper.from_array(np.array(trip), at))
                new.append(helper.make_node("Gather", [node.input[0], at], [f"{at}.row"], axis=0))
                (row,) = _inline(flat, attributes["body"], [f"{at}.row"], new, at)
                rows.append(f"{at}.whole")
                new.append(helper.make_node("Unsqueeze", [row, axis], [rows[-1]]))
            new.append(helper.make_node("Concat", rows, [node.output[0]], axis=0))
        nodes = [*flat.graph.node[:index], *new, *flat.graph.node[index + 1 :]]
        del flat.graph.node[:]
        flat.graph.node.extend(nodes)
        count += 1


def _values(
    model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, AnyArray]
) -> list[AnyArray]:
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    asked = [name for name in names if name not in stored]
    found = stored | dict(feeds) | (run(model, asked, feeds) if asked else {})
    return [found[name] for name in names]


def _identity(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Identity", [source], [target])


def _inline(
    model: onnx.ModelProto,
    body: onnx.GraphProto,
    arguments: Sequence[str],
    nodes: list[onnx.NodeProto],
    prefix: str,
) -> list[str]:
    """Add a body's nodes under new names; gives its results' names."""
    own = {name for node in body.node for name in node.output if name}
    own |= {tensor.name for tensor in body.initializer}
    names = {name: f"{prefix}/{name}" for name in own}
    names |= {v.name: argument for v, argument in zip(body.input, arguments, strict=True)}
    for tensor in body.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
        model.graph.initializer.append(copy)
    nodes += [_renamed(node, names) for node in body.node if not _is_flag(node, names)]
    return [names.get(value.name, value.name) for value in body.output]


def _is_flag(node: onnx.NodeProto, names: Mapping[str, str]) -> bool:
    """Whether it passes on a loop's condition, which has no name here."""
    return any(name and not names.get(name, name) for name in node.input)


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    copy.name = ""
    for attribute in copy.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner = [_renamed(n, names) for n in attribute.g.node]
            del attribute.g.node[:]
            attribute.g.node.extend(inner)
            for value in attribute.g.output:
                value.name = names.get(value.name, value.name)
    return copy
