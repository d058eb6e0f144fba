"""A small denoiser, and the forms in which exporters and people write the same function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.export.graphs import GraphBuilder

WIDTH = 32


def denoiser(opset: int = 20, middle: Callable[[GraphBuilder, str], str] | None = None) -> Any:
    """sample [b, 16, n], timestep [b]; linear layers on the tokens, a time embedding.

    `middle` writes something of the tokens' shape [b, n, 32] between them.
    """
    net = GraphBuilder(seed=11, opset=opset)
    sample, time = net.input("sample", ["b", 16, "n"]), net.input("timestep", ["b"])
    x = net.op("Transpose", sample, name="tokens", perm=[0, 2, 1])
    x = net.linear(x, 16, WIDTH, "first")
    column = net.op("Unsqueeze", time, net.constant("last_axis", np.array([1])), name="column")
    wave = net.op("Sin", net.op("Mul", column, net.weight("f", 1, 32), name="angle"), name="wave")
    shift = net.gemm(net.gemm(wave, 32, 32, "time_1"), 32, WIDTH, "time_2")
    middle_axis = net.constant("middle_axis", np.array([1]))
    x = net.op("Add", x, net.op("Unsqueeze", shift, middle_axis, name="spread"), name="timed")
    x = net.linear(net.op("Relu", x, name="act_1"), WIDTH, WIDTH, "up")
    if middle is not None:
        x = middle(net, x)
    x = net.linear(net.op("Relu", x, name="act_2"), WIDTH, WIDTH, "down")
    x = net.linear(x, WIDTH, 16, "last")
    return net.model({net.op("Transpose", x, name="prediction", perm=[0, 2, 1]): ["b", 16, "n"]})


def feeds(seed: int = 0, tokens: int = 24) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.normal(size=(1, 16, tokens)).astype(np.float32),
        "timestep": np.array([100.0 * (1 + seed % 9)], np.float32),
    }


def unsorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes in reverse order, as some editors leave them."""
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def other_domain_name(model: onnx.ModelProto) -> onnx.ModelProto:
    """`ai.onnx` in the imports and in every second node."""
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node[::2]:
        node.domain = "ai.onnx"
    return model


def both_domain_names(model: onnx.ModelProto) -> onnx.ModelProto:
    model.opset_import.append(helper.make_opsetid("ai.onnx", model.opset_import[0].version))
    return model


def nameless_dimensions(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_param"):
                dimension.Clear()
    return model


def initializers_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    return model


def without_value_infos(model: onnx.ModelProto) -> onnx.ModelProto:
    """As legacy exporters write it."""
    del model.graph.value_info[:]
    return model


def local_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every MatMul, in bodies too, as a call of one local function."""
    opset = helper.make_opsetid("", model.opset_import[0].version)
    body = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model.functions.append(helper.make_function("mine", "Linear", ["x", "w"], ["y"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    for node in _nodes(model.graph):
        if node.op_type == "MatMul":
            node.op_type, node.domain = "Linear", "mine"
    return model


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of all its bodies."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _replace_weights(
    model: onnx.ModelProto, write: Callable[[str, Any], tuple[list[Any], list[Any]]]
) -> onnx.ModelProto:
    """`write` gives, for each MatMul's weight, initializers and nodes that make the same tensor."""
    weights = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    stored = {t.name: t for t in model.graph.initializer}
    for name in sorted(weights):
        tensors, nodes = write(name, numpy_helper.to_array(stored[name]))
        model.graph.initializer.remove(stored[name])
        model.graph.initializer.extend(tensors)
        for node in reversed(nodes):
            model.graph.node.insert(0, node)
    return model


def cast_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stored in fp16, behind a Cast."""

    def write(name: str, array: Any) -> tuple[list[Any], list[Any]]:
        tensor = numpy_helper.from_array(array.astype(np.float16), f"{name}.fp16")
        node = helper.make_node("Cast", [tensor.name], [name], name=f"{name}.cast", to=1)
        return [tensor], [node]

    return _replace_weights(model, write)


def reshaped_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stored flat and transposed, behind Reshape, Transpose, Unsqueeze and Squeeze."""

    def write(name: str, array: Any) -> tuple[list[Any], list[Any]]:
        tensors = [
            numpy_helper.from_array(array.T.reshape(-1).copy(), f"{name}.flat"),
            numpy_helper.from_array(np.array(array.T.shape), f"{name}.shape"),
            numpy_helper.from_array(np.array([0]), f"{name}.axis"),
        ]
        chain = [f"{name}.{step}" for step in ("matrix", "turned", "batched")]
        nodes = [
            helper.make_node("Reshape", [tensors[0].name, tensors[1].name], [chain[0]]),
            helper.make_node("Transpose", [chain[0]], [chain[1]], perm=[1, 0]),
            helper.make_node("Unsqueeze", [chain[1], tensors[2].name], [chain[2]]),
            helper.make_node("Squeeze", [chain[2], tensors[2].name], [name]),
        ]
        return tensors, nodes

    return _replace_weights(model, write)


def batched_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights [1, K, N]."""

    def write(name: str, array: Any) -> tuple[list[Any], list[Any]]:
        return [numpy_helper.from_array(array[None].copy(), name)], []

    return _replace_weights(model, write)


def einsums(model: onnx.ModelProto) -> onnx.ModelProto:
    """The linear layers as Einsum, in every order of operands and axes."""
    forms = ["bsk,kn->bsn", "bsk,nk->bsn", "...k,kn->...n", "kn,bsk->bsn", "nk,...k->...n"]
    stored = {t.name: t for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    for index, node in enumerate(products):
        equation = forms[index % len(forms)]
        pair = next(p for p in equation.split("->")[0].split(",") if len(p) == 2)
        if pair == "nk":
            array = numpy_helper.to_array(stored[node.input[1]]).T.copy()
            stored[node.input[1]].CopyFrom(numpy_helper.from_array(array, node.input[1]))
        if equation.startswith(pair):
            node.input[:] = node.input[::-1]
        node.op_type = "Einsum"
        node.attribute.append(helper.make_attribute("equation", equation))
    return model


FORMS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    form.__name__: form
    for form in (
        unsorted,
        other_domain_name,
        both_domain_names,
        nameless_dimensions,
        initializers_as_inputs,
        without_value_infos,
        local_functions,
        cast_weights,
        reshaped_weights,
        batched_weights,
        einsums,
    )
}
"""Rewrites of `denoiser()` that ONNX Runtime runs with the same result."""
