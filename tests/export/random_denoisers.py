"""Random denoisers: a grammar of the operators that the tool speaks of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qvd_trt.export.arrays import AnyArray
from tests.export import files_people_have as forms
from tests.export.graph_blocks import BLOCKS, ends
from tests.export.graph_grammar import EXTENTS, Grammar

WHOLE_FILE = (
    forms.unsorted,
    forms.other_domain_name,
    forms.both_domain_names,
    forms.nameless_dimensions,
    forms.initializers_as_inputs,
    forms.without_value_infos,
    forms.local_functions,
)
"""What may be done to any file without changing what it computes."""


@dataclass(frozen=True)
class Case:
    """One denoiser.

    `plain` is the checked model; `model` is the same function in a form that people have.
    """

    plain: onnx.ModelProto
    model: onnx.ModelProto
    seed: int
    text: str

    def __repr__(self) -> str:
        return self.text

    def calls(self, count: int = 3) -> list[dict[str, AnyArray]]:
        """Calls on noise; their timesteps lie on both sides of 500."""
        return [self._call(index) for index in range(count)]

    def _call(self, index: int) -> dict[str, AnyArray]:
        rng = np.random.default_rng([self.seed, index])
        feeds: dict[str, AnyArray] = {}
        for value in self.plain.graph.input:
            tensor = value.type.tensor_type
            extents = {"b": 1 + index % 2, "n": EXTENTS[0][0], "m": 3 + index}
            shape = [extents.get(dim.dim_param, dim.dim_value) for dim in tensor.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if value.name == "timestep":
                feeds[value.name] = np.full(shape, (901, 101, 701)[index % 3], dtype)
            else:
                feeds[value.name] = rng.normal(size=shape).astype(dtype)
        return feeds


def _may_leave(value: onnx.ValueInfoProto) -> bool:
    """Whether a tensor may be an output as well: floats of known rank."""
    tensor = value.type.tensor_type
    return bool(tensor.elem_type == TensorProto.FLOAT and tensor.HasField("shape"))


def _extent(draw: st.DrawFn, symbol: str, number: int) -> int | str:
    return symbol if draw(st.booleans()) else number


@st.composite
def denoisers(draw: st.DrawFn, most: int = 5) -> Case:
    """A denoiser of up to `most` blocks."""
    spatial = draw(st.integers(0, 3))
    opset = draw(st.integers(13, 25))
    seed = draw(st.integers(0, 1000))
    net = Grammar(draw, seed, opset, draw(st.sampled_from((16, 32))), spatial)
    batch = _extent(draw, "b", 1)
    channels = draw(st.sampled_from((4, 16)))
    extents: tuple[int | str, ...] = EXTENTS[spatial]
    if spatial < 2 and draw(st.booleans()):
        extents = ("n",)
    shape: list[int | str] = [batch, channels, *extents] if spatial else [batch, *extents, channels]
    latent = net.input("sample", shape)
    dtype = draw(st.sampled_from(("float32", "int64")))
    rank = draw(st.sampled_from((1, 0)))
    time = net.input("timestep", [batch] if rank else [], dtype)
    if draw(st.booleans()):
        net.condition = net.input("context", [batch, _extent(draw, "m", 5), net.width])
    pooled = net.input("pooled", [batch, net.width]) if draw(st.booleans()) else ""
    net.embed(time, rank, dtype, pooled)
    first, last = ends(net, channels)
    x = first(latent)
    names = sorted(name for name, (_, applies) in BLOCKS.items() if applies(net))
    drawn = draw(st.lists(st.sampled_from(names), min_size=1, max_size=most))
    for name in drawn:
        net.words.append(f"<{name}>")
        y = BLOCKS[name][0](net, x)
        x = net.add("Add", x, y) if draw(st.booleans()) else y
    product = net.tokens(x, lambda t: net.add("MatMul", t, net.matrix(net.width, net.width)))
    x = net.add("Add", x, product)  # so that there is something to quantize
    prediction = last(x)
    if draw(st.booleans()):
        prediction = net.add(draw(st.sampled_from(("Add", "Sub"))), prediction, latent)
    plain = net.unchecked({prediction: shape})
    inferred = onnx.shape_inference.infer_shapes(plain, data_prop=True)
    tensors = [v for v in inferred.graph.value_info if _may_leave(v)]
    for value in draw(st.lists(st.sampled_from(tensors), max_size=2, unique_by=lambda v: v.name)):
        net.words.append(f"out:{value.name}")
        plain.graph.output.append(value)
    if draw(st.booleans()):
        plain = onnx.shape_inference.infer_shapes(plain, data_prop=True)
    onnx.checker.check_model(plain, full_check=True)
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    chosen = draw(st.lists(st.sampled_from(WHOLE_FILE), max_size=2, unique_by=lambda f: f.__name__))
    if {forms.other_domain_name, forms.both_domain_names} <= set(chosen):
        chosen.remove(forms.both_domain_names)
    chosen.sort(key=lambda form: form is forms.local_functions)  # whose nodes keep their domain
    for form in chosen:
        model = form(model)
    text = " ".join((f"{spatial}d opset {opset}", *net.words, *(f.__name__ for f in chosen)))
    return Case(plain, model, seed, text)
