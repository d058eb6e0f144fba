"""Hand-made ONNX graphs, a node a line, with seeded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_layers import find_layers
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec, read_signature
from qvd_trt.export.graph.values import nodes_by_name
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.targets import FloatType

Shape = Sequence[int | str]


class GraphBuilder:
    """Writes nodes in order; every method returns the tensor name that the next ones take."""

    def __init__(self, seed: int = 0, opset: int = 20) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, AnyArray] = {}
        self._declared: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def declare(self, name: str, shape: Shape) -> str:
        """State a tensor's shape, for the operators that inference knows nothing of."""
        kind = onnx.TensorProto.FLOAT
        self._declared.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def constant(self, name: str, array: AnyArray) -> str:
        self._constants[name] = array
        return name

    def weight(self, name: str, *shape: int, spread: float = 0.3, mean: float = 0.0) -> str:
        values = self.rng.normal(mean, spread, shape)
        return self.constant(name, values.astype(np.float32))

    def op(self, op_type: str, *inputs: str, name: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; its first output is `<name>_out`."""
        names = [f"{name}_out", *(f"{name}_out{i}" for i in range(1, outputs))]
        self._nodes.append(
            helper.make_node(op_type, list(inputs), names, name=name or None, **attributes)
        )
        return names[0]

    def linear(self, x: str, rows: int, columns: int, name: str, *, bias: bool = True) -> str:
        """MatMul, and Add when there is a bias."""
        product = self.op("MatMul", x, self.weight(f"{name}.weight", rows, columns), name=name)
        if not bias:
            return product
        return self.op("Add", product, self.weight(f"{name}.bias", columns), name=f"{name}_bias")

    def gemm(self, x: str, rows: int, columns: int, name: str, *, bias: bool = True) -> str:
        operands = [x, self.weight(f"{name}.weight", columns, rows)]
        if bias:
            operands.append(self.weight(f"{name}.bias", columns))
        return self.op("Gemm", *operands, name=name, transB=1)

    def conv(
        self,
        x: str,
        channels: int,
        filters: int,
        kernel: Sequence[int],
        name: str,
        *,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        groups = attributes.get("group", 1)
        operands = [x, self.weight(f"{name}.weight", filters, channels // groups, *kernel)]
        if bias:
            operands.append(self.weight(f"{name}.bias", filters))
        return self.op("Conv", *operands, name=name, **attributes)

    def layer_norm(self, x: str, channels: int, name: str) -> str:
        gamma = self.weight(f"{name}.gamma", channels, mean=1.0)
        beta = self.weight(f"{name}.beta", channels)
        return self.op("LayerNormalization", x, gamma, beta, name=name, axis=-1)

    def reshape(self, x: str, shape: Sequence[int], name: str) -> str:
        extents = self.constant(f"{name}.shape", np.array(shape, np.int64))
        return self.op("Reshape", x, extents, name=name)

    def group_norm(
        self, x: str, channels: int, groups: int, extents: Sequence[int | str], name: str
    ) -> str:
        """As exporters write it: Reshape, InstanceNormalization, Reshape, Mul, Add.

        `extents` is the shape of `x`; its batch is fixed or taken from the input (0).
        """
        grouped = self.reshape(x, [0, groups, -1], f"{name}_group")
        ones = self.constant(f"{name}.ones", np.ones(groups, np.float32))
        zeros = self.constant(f"{name}.zeros", np.zeros(groups, np.float32))
        normal = self.op("InstanceNormalization", grouped, ones, zeros, name=f"{name}_normal")
        shape = self.op("Shape", x, name=f"{name}_shape")
        whole = self.op("Reshape", normal, shape, name=f"{name}_whole")
        spatial = [1] * (len(extents) - 2)
        gamma = self.weight(f"{name}.gamma", channels, *spatial, mean=1.0)
        beta = self.weight(f"{name}.beta", channels, *spatial)
        scaled = self.op("Mul", whole, gamma, name=f"{name}_mul")
        return self.op("Add", scaled, beta, name=f"{name}_add")

    def model(self, outputs: Mapping[str, Shape]) -> onnx.ModelProto:
        """Give the checked model, with the shapes of all its tensors inferred."""
        model = self.unchecked(outputs)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
        return model

    def unchecked(self, outputs: Mapping[str, Shape]) -> onnx.ModelProto:
        """Give the model as it stands, to be edited further."""
        graph = helper.make_graph(
            self._nodes,
            "hand_made",
            self._inputs,
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))
                for name, shape in outputs.items()
            ],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
            value_info=self._declared,
        )
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def prepared(model: onnx.ModelProto | Path) -> ir.Model:
    """Load a model as the export does, with its nodes named and its constants lifted."""
    loaded = ir.load(model) if isinstance(model, Path) else ir.from_proto(model)
    Prepare()(loaded)
    return loaded


def opened(model: ir.Model) -> FloatModel:
    """A prepared model as the stages take it; one without a timestep has an empty interface."""
    try:
        signature = read_signature(model.graph)
    except UserError:
        signature = ModelSignature((), TensorSpec("", "float32", ()), "", "")
    layers, odd = find_layers(model.graph)
    return FloatModel(
        path=Path("in memory"),
        data_folder=Path(),
        files=(),
        stored=FloatType.FP32,
        source=model,
        prepared=model,
        signature=signature,
        layers={layer.name: layer for layer in layers},
        odd_layers=tuple(odd),
        nodes=nodes_by_name(model.graph),
    )
