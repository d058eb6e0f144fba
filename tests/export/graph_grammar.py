"""The words of the grammar of denoisers: weights in every form, activations, bodies, time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qvd_trt.export.arrays import AnyArray
from tests.export.graphs import GraphBuilder

T = TypeVar("T")

EXTENTS = {0: (24,), 1: (24,), 2: (6, 6), 3: (2, 4, 4)}
"""Tokens, or spatial extents of the latent by their number: enough rows for an INT8 GEMM."""


class Grammar(GraphBuilder):
    """A graph in the making: hypothesis draws its structure, a seed its numbers.

    Blocks take and give activations `[b, width, *spatial]`, or `[b, n, width]` where named so.
    """

    def __init__(self, draw: st.DrawFn, seed: int, opset: int, width: int, spatial: int) -> None:
        super().__init__(seed, opset)
        self.draw = draw
        self.opset = opset
        self.width = width
        self.spatial = spatial
        self.embedding = ""
        self.condition = ""
        self.words: list[str] = []
        self._weights: dict[tuple[int, ...], list[str]] = {}
        self._count = 0
        self.depth = 0

    def one_of(self, *choices: T) -> T:
        return self.draw(st.sampled_from(choices))

    def maybe(self) -> bool:
        return self.draw(st.booleans())

    def new(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def add(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        return self.op(
            op_type, *inputs, name=self.new(op_type.lower()), outputs=outputs, **attributes
        )

    def ints(self, *numbers: int) -> str:
        return self.constant(self.new("ints"), np.array(numbers, np.int64))

    def floats(self, array: Any) -> str:
        return self.constant(self.new("floats"), np.asarray(array, np.float32))

    def matrix(self, *shape: int, fan_in: int | None = None) -> str:
        """A weight, stored in one of the ways in which files hold them, or one used before."""
        known = self._weights.get(shape, [])
        if known and not self.depth and self.draw(st.integers(0, 5)) == 0:
            self.words.append("shared")
            return self.draw(st.sampled_from(known))
        spread = (fan_in or shape[0]) ** -0.5
        array = self.rng.normal(0, spread, shape).astype(np.float32)
        name = self._stored(array)
        if not self.depth:
            self._weights.setdefault(shape, []).append(name)
        return name

    def _stored(self, array: AnyArray, steps: int = 2) -> str:
        """A tensor of these contents, through at most so many nodes."""
        kinds = ["initializer", "initializer", "initializer", "constant"]
        if steps:
            kinds += ["transpose", "reshape", "squeeze", "unsqueeze", "identity"]
            kinds += ["cast", "double"] if array.dtype == np.float32 else []
        form = self.draw(st.sampled_from(kinds))
        if form == "initializer":
            return self.constant(self.new("weight"), array)
        self.words.append(form)
        if form == "constant":
            return self.add("Constant", value=numpy_helper.from_array(array, self.new("weight")))
        if form in ("cast", "double"):
            low = array.astype(np.float16 if form == "cast" else np.float64)
            return self.add("Cast", self._stored(low, steps - 1), to=TensorProto.FLOAT)
        if form == "transpose":
            turned = self._stored(np.ascontiguousarray(array.T), steps - 1)
            perm: dict[str, Any] = {"perm": [*range(array.ndim)][::-1]} if self.maybe() else {}
            return self.add("Transpose", turned, **perm)
        if form == "reshape":
            shape = self.ints(*self.one_of(array.shape, (-1, *array.shape[1:])))
            return self.add("Reshape", self._stored(array.reshape(-1), steps - 1), shape)
        if form == "squeeze":
            axes = [] if 1 not in array.shape and self.maybe() else [self.ints(0)]
            return self.add("Squeeze", self._stored(array[None], steps - 1), *axes)
        if form == "unsqueeze" and array.shape[0] == 1:
            return self.add("Unsqueeze", self._stored(array[0], steps - 1), self.ints(0))
        return self.add("Identity", self._stored(array, steps - 1))

    def vector(self, channels: int, mean: float = 0.0) -> str:
        """A bias, gamma or beta, stored in one of the ways of weights."""
        array = self.rng.normal(mean, 0.3, channels).astype(np.float32)
        return self._stored(array) if self.maybe() else self.floats(array)

    def bias(self, channels: int) -> list[str]:
        return [self.vector(channels)] if self.maybe() else []

    def silu(self, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def gelu(self, x: str) -> str:
        if self.opset >= 20 and self.maybe():
            return self.add("Gelu", x, approximate=self.one_of("none", "tanh"))
        root = self.add("Mul", x, self.floats(2**-0.5))
        gate = self.add("Add", self.add("Erf", root), self.floats(1))
        return self.add("Mul", self.add("Mul", x, gate), self.floats(0.5))

    def activation(self, x: str) -> str:
        kind = self.one_of("silu", "gelu", "Tanh", "Relu", "Softplus")
        if kind in ("silu", "gelu"):
            return self.silu(x) if kind == "silu" else self.gelu(x)
        return self.add(kind, x)

    def tokens(self, x: str, block: Callable[[str], str]) -> str:
        """A block on tokens `[b, n, width]` of a channels-first activation."""
        shape = self.add("Shape", x)
        flat = self.add("Reshape", x, self.ints(0, self.width, -1))
        y = block(self.add("Transpose", flat, perm=[0, 2, 1]))
        return self.add("Reshape", self.add("Transpose", y, perm=[0, 2, 1]), shape)

    def shaped_like(self, x: str, leading: int, *trailing: int) -> str:
        """The first extents of a tensor, and others behind them."""
        whole = self.add("Shape", x)
        first = self.add("Slice", whole, self.ints(0), self.ints(leading))
        return self.add("Concat", first, self.ints(*trailing), axis=0)

    def body(self, write: Callable[[], str], shared: str = "") -> onnx.GraphProto:
        """A graph of its own, of what `write` adds; its weights lie there or outside."""
        outer, self._nodes = self._nodes, []
        inner_constants: dict[str, AnyArray] = {}
        own = self.maybe()
        if own:
            before, self._constants = self._constants, inner_constants
        self.depth += 1
        result = write()
        if shared:
            self._nodes.append(helper.make_node("Identity", [result], [shared]))
            result = shared
        self.depth -= 1
        if own:
            self._constants = before
        nodes, self._nodes = self._nodes, outer
        value = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        stored = [numpy_helper.from_array(a, n) for n, a in inner_constants.items()]
        return helper.make_graph(nodes, self.new("body"), [], [value], stored)

    def embed(self, time: str, rank: int, dtype: str, pooled: str = "") -> None:
        """The time MLP on sines and cosines, and a layer on a pooled condition."""
        if dtype != "float32":
            time = self.add("Cast", time, to=TensorProto.FLOAT)
        if rank == 1:
            column = self.add("Unsqueeze", time, self.ints(1))
        else:
            column = self.add("Reshape", time, self.ints(-1, 1))
        rates = self.floats(np.geomspace(0.1, 1e-3, self.width // 2)[None])
        angle = self.add("Mul", column, rates)
        waves = [self.add("Sin", angle), self.add("Cos", angle)]
        x = self.add("Concat", *waves, axis=1)
        for last in (False, True):
            weight = self.matrix(self.width, self.width)
            x = self.add("Gemm", x, weight, *self.bias(self.width), transB=self.one_of(0, 1))
            if not last or self.maybe():
                x = self.silu(x)
        if pooled:
            extra = self.add("MatMul", pooled, self.matrix(self.width, self.width))
            x = self.add("Add", x, extra)
        self.embedding = x
