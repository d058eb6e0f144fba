"""Probe nodes: reductions and row samples of activations, computed inside the ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.passes.body_values import BodyValues
from qvd_trt.export.plan.site_types import Site, Window

POSITIONS_INPUT = "qvd/positions"
"""Graph input ``[R, 1 + 3]`` float64 in [0, 1): where the sample rows are read."""

POSITION_COLUMNS = 4

_AXES_ARE_INPUTS_SINCE = 18


@dataclass(frozen=True, slots=True)
class SiteProbes:
    """Names of the graph outputs that hold one dense site's statistics of one call.

    Attributes:
        minimum: ``[C]`` float32.
        maximum: ``[C]`` float32.
        mean: Scalar float32; NaN or Inf when the activation holds any.
        rows: By ``Window.key``, ``[R, C, taps]`` float32.
    """

    minimum: str
    maximum: str
    mean: str
    rows: dict[str, str]


class ProbeWriter:
    """Adds probes to a model in place; the model's own nodes and outputs stay as they are."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
        self._bodies = BodyValues(model.graph)
        self._opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
        self._positions: ir.Value | None = None
        self._count = 0

    def add_positions_input(self) -> None:
        """Declare the input that says where rows are sampled."""
        self._positions = ir.Value(
            name=POSITIONS_INPUT,
            shape=ir.Shape(["qvd_rows", POSITION_COLUMNS]),
            type=ir.TensorType(ir.DataType.DOUBLE),
        )
        self._graph.inputs.append(self._positions)

    def add_site(self, site: Site, row_count: int) -> SiteProbes:
        """Probe a dense site; ``row_count`` rows are sampled per call and window."""
        tensor = self._values[site.tensor]
        if site.channel_axis == -1:
            flat = self._reshape(tensor, [-1, site.channels])
            axes = [0]
        else:
            flat = self._reshape(tensor, [0, site.channels, -1])
            axes = [0, 2]
        rows = {
            window.key: self._output(
                self._patches(site, window, row_count)
                if window.kernel
                else self._linear_rows(flat, site.channels, row_count)
            )
            for window in site.windows
            if row_count
        }
        return SiteProbes(
            minimum=self._output(self._reduce("ReduceMin", flat, axes)),
            maximum=self._output(self._reduce("ReduceMax", flat, axes)),
            mean=self._output(self._reduce("ReduceMean", flat, list(range(len(axes) + 1)))),
            rows=rows,
        )

    def has(self, tensor: str) -> bool:
        """Whether the graph itself, not a subgraph, has a tensor of this name."""
        return tensor in self._values

    def add_magnitude(self, tensor: str) -> tuple[str, str]:
        """Output the least and the greatest value of a whole tensor, scalars float32."""
        value = self._values[tensor]
        least, greatest = (
            self._output(self._node(op, [value], keepdims=0)) for op in ("ReduceMin", "ReduceMax")
        )
        return least, greatest

    def add_feature(self, tensor: str, channels: int) -> str:
        """Output a whole (small) temporal feature as ``[rows, channels]`` float32."""
        return self._output(self._reshape(self._values[tensor], [-1, channels]))

    def add_size(self, tensor: str) -> str:
        """Output the number of elements of a tensor, int64 scalar.

        Of a tensor in a body of If, Loop or Scan all that one call computes are counted.
        """
        if tensor in self._values:
            size = self._node("Size", [self._values[tensor]])
        else:
            size = self._bodies.total_size(tensor, self._name("Size"))
        return self._output(size, ir.DataType.INT64)

    def _linear_rows(self, flat: ir.Value, channels: int, count: int) -> ir.Value:
        """``[count, C, 1]``: rows of a ``[rows, C]`` activation."""
        extent = self._node("Gather", [self._node("Shape", [flat]), self._constant(0)], axis=0)
        index = self._sampled_index(0, count, extent)
        return self._reshape(self._node("Gather", [flat, index], axis=0), [-1, channels, 1])

    def _patches(self, site: Site, window: Window, count: int) -> ir.Value:
        """``[count, C, taps]``: what output positions of a convolution read, zeros where padded.

        The activation is flattened and gathered by linear index, so that no padded or transposed
        copy of it is ever made.
        """
        rank = len(window.kernel)
        tensor = self._values[site.tensor]
        shape = self._node("Shape", [tensor])
        extents = [
            self._node("Gather", [shape, self._constant(axis)], axis=0) for axis in range(2 + rank)
        ]
        batch = self._sampled_index(0, count, extents[0])
        linear = self._arranged(batch, 0, 2 + rank)
        inside = None
        linear = self._scaled_sum(
            linear, extents[1], self._constant(np.arange(site.channels).reshape(_axis(1, 2 + rank)))
        )
        for axis in range(rank):
            extent = extents[2 + axis]
            at, valid = self._window_positions(window, axis, count, extent)
            linear = self._scaled_sum(linear, extent, at)
            inside = valid if inside is None else self._node("And", [inside, valid])
        assert inside is not None
        values = self._node("Gather", [self._reshape(tensor, [-1]), linear], axis=0)
        zero = self._constant(np.float32(0))
        patches = self._node("Where", [inside, values, zero])
        return self._reshape(patches, [-1, site.channels, window.taps])

    def _window_positions(
        self, window: Window, axis: int, count: int, extent: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Clipped positions along one spatial axis and whether they lie inside the activation."""
        rank = len(window.kernel)
        reach = window.dilations[axis] * (window.kernel[axis] - 1) + 1
        slack = window.pads_begin[axis] + window.pads_end[axis] - reach
        outputs = self._node(
            "Add",
            [
                self._node(
                    "Div",
                    [
                        self._node("Add", [extent, self._constant(slack)]),
                        self._constant(window.strides[axis]),
                    ],
                ),
                self._constant(1),
            ],
        )
        output = self._arranged(self._sampled_index(1 + axis, count, outputs), 0, 2 + rank)
        taps = np.arange(window.kernel[axis]) * window.dilations[axis] - window.pads_begin[axis]
        at = self._node(
            "Add",
            [
                self._node("Mul", [output, self._constant(window.strides[axis])]),
                self._constant(taps.reshape(_axis(2 + axis, 2 + rank))),
            ],
        )
        valid = self._node(
            "And",
            [
                self._node("GreaterOrEqual", [at, self._constant(0)]),
                self._node("Less", [at, extent]),
            ],
        )
        last = self._node("Sub", [extent, self._constant(1)])
        clipped = self._node("Min", [self._node("Max", [at, self._constant(0)]), last])
        return clipped, valid

    def _sampled_index(self, column: int, count: int, extent: ir.Value) -> ir.Value:
        """``[count]`` int64 in [0, extent), from one column of the positions input."""
        assert self._positions is not None
        column_values = self._node("Gather", [self._positions, self._constant(column)], axis=1)
        first = self._node("Gather", [column_values, self._constant(np.arange(count))], axis=0)
        extent_double = self._node("Cast", [extent], to=int(ir.DataType.DOUBLE))
        scaled = self._node("Floor", [self._node("Mul", [first, extent_double])])
        return self._node("Cast", [scaled], to=int(ir.DataType.INT64))

    def _scaled_sum(self, linear: ir.Value, extent: ir.Value, offset: ir.Value) -> ir.Value:
        return self._node("Add", [self._node("Mul", [linear, extent]), offset])

    def _arranged(self, vector: ir.Value, axis: int, rank: int) -> ir.Value:
        return self._reshape(vector, list(_axis(axis, rank)))

    def _reduce(self, op: str, tensor: ir.Value, axes: list[int]) -> ir.Value:
        if self._opset >= _AXES_ARE_INPUTS_SINCE:
            return self._node(op, [tensor, self._constant(np.array(axes))], keepdims=0)
        return self._node(op, [tensor], axes=axes, keepdims=0)

    def _reshape(self, tensor: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self._node("Reshape", [tensor, self._constant(np.array(shape))])

    def _constant(self, value: int | AnyArray | np.generic) -> ir.Value:
        array = np.asarray(value)
        if array.dtype.kind == "i":
            array = array.astype(np.int64)
        tensor = ir.tensor(array, name=self._name("constant"))
        constant = ir.Value(
            name=tensor.name,
            const_value=tensor,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
        )
        self._graph.register_initializer(constant)
        return constant

    def _node(self, op: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=self._name(op))
        output = node.outputs[0]
        output.name = node.name
        self._graph.append(node)
        return output

    def _output(self, value: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT) -> str:
        value.dtype = dtype
        self._graph.outputs.append(value)
        return value.name or ""

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"qvd/probe/{stem}_{self._count}"


def _axis(axis: int, rank: int) -> tuple[int, ...]:
    """A shape of ones with -1 at one axis."""
    return tuple(-1 if index == axis else 1 for index in range(rank))
