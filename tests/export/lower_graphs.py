"""Small graphs for the tests of the lowering passes, and how they are run and compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass

from qvd_trt.export.arrays import AnyArray

EXTENTS = {"batch": 2, "frames": 3, "height": 8, "width": 12, "tokens": 7}
"""Extents of the exported denoisers' symbolic axes."""

FLOAT, FP16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16

X = "float[2,4] x"
Y = "float[a,b] y"
WEIGHT = "float[4,3] w = {1, -2, 3, 0.1, 0.2, 0.3, -1, -1, 1, 2, 2, -2}"


def graph(
    body: str,
    inputs: str = X,
    output: str = Y,
    constants: str = "",
    opset: int = 20,
    functions: str = "",
) -> ir.Model:
    declared = f"<{constants}>" if constants else ""
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "qvd" : 1]>'
    text = f"{header} g ({inputs}) => ({output}) {declared} {{ {body} }} {functions}"
    model = ir.from_onnx_text(text)
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    ShapeInferencePass()(model)
    return model


def random_feeds(model: ir.Model, seed: int = 0) -> dict[str, AnyArray]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, AnyArray] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [d if isinstance(d, int) else EXTENTS[str(d.value)] for d in value.shape]
        dtype = value.dtype.numpy()
        if dtype.kind == "i":
            feeds[value.name or ""] = np.full(shape, 999, dtype)
        else:
            feeds[value.name or ""] = rng.normal(size=shape).astype(dtype)
    return feeds


def check(model: ir.Model) -> None:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)


def run(
    model: ir.Model, feeds: dict[str, AnyArray], outputs: Sequence[str] | None = None
) -> list[AnyArray]:
    check(model)
    with np.errstate(all="ignore"):
        result = ReferenceEvaluator(ir.to_proto(model)).run(outputs, feeds)
    assert isinstance(result, list)
    return result


def run_in_onnx_runtime(model: ir.Model, feeds: dict[str, AnyArray]) -> list[AnyArray]:
    """Run where the product runs; its CPU kernels compute much of an fp16 graph in float32."""
    check(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: list[AnyArray] = session.run(None, feeds)
    return result


def sqnr(actual: AnyArray, expected: AnyArray) -> float:
    exact = expected.astype(np.float64)
    noise = exact - actual.astype(np.float64)
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.square(exact).sum() / np.square(noise).sum()))


def dtypes(model: ir.Model) -> dict[str, ir.DataType]:
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    return {value.name or "": value.dtype for value in values if value.dtype is not None}


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def expose(model: ir.Model, names: Sequence[str]) -> None:
    values = {output.name: output for node in model.graph for output in node.outputs}
    model.graph.outputs.extend(values[name] for name in names)
