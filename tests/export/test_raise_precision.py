"""A 16-bit file is read as the float32 file of the same weights, without holding them all."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.model_file import load_model, normalize, open_model, save_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.passes.emulate_low_precision import EmulateLowPrecision
from qvd_trt.export.passes.normalize import Normalize
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.stored_weights import WidenedTensor, with_stored_weights
from qvd_trt.export.targets import TARGETS, FloatType, default_float_type
from tests.export.graphs import GraphBuilder
from tests.models.sixteen_bits import BF16, FLOAT, FP16, in_16_bits, rounded_weights
from tests.models.small_unet import small_unet

KINDS: dict[int, FloatType] = {FP16: FloatType.FP16, BF16: FloatType.BF16}


def read(model: onnx.ModelProto) -> ir.Model:
    loaded = ir.from_proto(model)
    normalize(loaded, Path("model.onnx"))
    return loaded


def run(model: ir.Model, **inputs: AnyArray) -> AnyArray:
    (first, *_) = open_session(model).run(None, inputs)
    return np.asarray(first, np.float32)


def unet_inputs(dtype: type = np.float32) -> dict[str, AnyArray]:
    noise = np.random.default_rng(0).normal(size=(2, 16, 8, 8)).astype(np.float16)
    return {"sample": noise.astype(dtype), "timestep": np.array([999, 3])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("islands", [(), ("Sigmoid", "MatMul")], ids=["pure", "mixed"])
def test_it_computes_what_the_float32_file_does(kind: int, islands: tuple[str, ...]) -> None:
    # A float32 island keeps its own weights as they are.
    rounded = rounded_weights(small_unet(), kind)
    expected = run(read(rounded), **unet_inputs())
    found = read(in_16_bits(rounded, kind, islands=islands, interface=False))
    np.testing.assert_array_equal(run(found, **unet_inputs()), expected)
    assert not np.array_equal(run(read(small_unet()), **unet_inputs()), expected)  # it was rounded


def test_fp16_interfaces_stay_and_bf16_ones_become_float32() -> None:
    expected = run(read(rounded_weights(small_unet(), FP16)), **unet_inputs())
    fp16 = read(in_16_bits(small_unet(), FP16))
    graph = fp16.graph
    assert {graph.inputs[0].dtype, graph.outputs[0].dtype} == {ir.DataType.FLOAT16}
    found = run(fp16, **unet_inputs(np.float16))
    np.testing.assert_array_equal(found, expected.astype(np.float16).astype(np.float32))
    bf16 = read(in_16_bits(small_unet(), BF16))
    assert {bf16.graph.inputs[0].dtype, bf16.graph.outputs[0].dtype} == {ir.DataType.FLOAT}
    expected = run(read(rounded_weights(small_unet(), BF16)), **unet_inputs())
    np.testing.assert_array_equal(run(bf16, **unet_inputs()), expected)


def names(model: ir.Model) -> set[str]:
    values = [output for node in model.graph for output in node.outputs]
    return {value.name or "" for value in (*values, *model.graph.initializers.values())}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_keep_their_names(kind: int) -> None:
    names_there = names(read(small_unet()))
    found = names(read(in_16_bits(small_unet(), kind)))
    assert names_there <= found
    assert {name for name in found - names_there if "/qvd/" not in name} == set()


def test_reading_again_changes_nothing() -> None:
    model = read(in_16_bits(small_unet(), FP16))
    once = ir.to_proto(model).SerializeToString()
    Normalize()(model)
    assert ir.to_proto(model).SerializeToString() == once


def small(kind: int) -> GraphBuilder:
    g = GraphBuilder()
    g.input("x", ["n", 4], str(helper.tensor_dtype_to_np_dtype(kind)))
    return g


def typed(g: GraphBuilder, kind: int, *outputs: str) -> onnx.ModelProto:
    model = g.unchecked({name: ["n", 4] for name in outputs})
    for output in model.graph.output:
        output.type.tensor_type.elem_type = kind
    return model


def test_what_the_source_overflows_on_is_computed() -> None:
    g = small(FP16)
    factor = g.constant("factor", np.array(300, np.float16))
    g.op("Div", g.op("Mul", "x", factor, name="large"), factor, name="small")
    model = typed(g, FP16, "small_out")
    x = np.full((1, 4), 300, np.float16)
    rounding = ir.from_proto(model)
    EmulateLowPrecision()(rounding)
    (overflown,) = open_session(rounding, optimized=False).run(None, {"x": x})
    assert np.isinf(overflown).all()
    np.testing.assert_array_equal(run(read(model), x=x), 300)


@pytest.mark.parametrize("in_node", [False, True])
def test_a_mask_keeps_its_value(in_node: bool) -> None:
    g = small(FP16)
    least = np.array(-65504, np.float16)
    if in_node:
        mask = g.op("Constant", name="mask", value=numpy_helper.from_array(least))
    else:
        mask = g.constant("mask", least)
    g.op("Add", "x", mask, name="masked")
    model = read(typed(g, FP16, "masked_out"))
    inner = next(node for node in model.graph if node.op_type == "Add")
    tensor = ir.convenience.get_const_tensor(inner.inputs[1])  # type: ignore[arg-type]
    assert tensor is not None
    assert (tensor.dtype, float(tensor.numpy())) == (ir.DataType.FLOAT, -65504)


def test_an_output_that_is_read_inside_and_one_cast_from_integers() -> None:
    g = small(FP16)
    square = g.op("Mul", "x", "x", name="square")
    g.op("Sqrt", square, name="root")
    whole = g.op("Cast", g.op("Cast", "x", name="whole", to=TensorProto.INT32), name="low", to=FP16)
    g.op("Add", whole, "root_out", name="sum")
    model = read(typed(g, FP16, "square_out", "low_out", "sum_out"))
    x = np.array([[300.0, 1.5, 2.5, 0.0]], np.float16)  # 300 squared is beyond fp16
    square_out, low, total = open_session(model).run(None, {"x": x})
    assert [value.dtype for value in (square_out, low, total)] == [np.float16] * 3
    assert np.isinf(square_out[0, 0])
    np.testing.assert_array_equal(low, [[300, 1, 2, 0]])
    np.testing.assert_array_equal(total, [[600, 2.5, 4.5, 0]])


@pytest.mark.parametrize("kind", [FP16, BF16, FLOAT])
def test_16_bit_weights_around_control_flow_are_refused(tmp_path: Path, kind: int) -> None:
    model = in_16_bits(small_unet(), kind, interface=False) if kind != FLOAT else small_unet()
    output = model.graph.output[0].name
    branch = helper.make_graph(
        [helper.make_node("Identity", [f"{output}/inner"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", FLOAT, None)],
    )
    for node in model.graph.node:
        node.output[:] = [f"{output}/inner" if name == output else name for name in node.output]
    model.graph.initializer.add(name="flag", data_type=TensorProto.BOOL, int32_data=[1])
    choice = helper.make_node("If", ["flag"], [output], then_branch=branch, else_branch=branch)
    model.graph.node.append(choice)
    onnx.save(model, tmp_path / "model.onnx")
    if kind == FLOAT:
        assert open_model(tmp_path / "model.onnx").layers
        return
    with pytest.raises(UserError, match="export the model in float32, or without If"):
        open_model(tmp_path / "model.onnx")


WIDE, LAYERS = 2048, 24


def deep(path: Path, kind: int, *, transposed: bool = False) -> Path:
    """A denoiser of 24 layers of 8 MB in 16 bits each, its weights zeros in a sparse file."""
    g = GraphBuilder()
    g.input("sample", ["batch", WIDE, "length"])
    g.input("timestep", ["batch"], "float32")
    hidden = g.op("Cast", g.op("Transpose", "sample", name="in", perm=[0, 2, 1]), name="c", to=kind)
    for index in range(LAYERS):
        weight = f"w{index}"
        if transposed:
            weight = g.op("Transpose", weight, name=f"t{index}", perm=[1, 0])
        hidden = g.op("MatMul", hidden, weight, name=f"layer{index}")
    wide = g.op("Cast", hidden, name="wide", to=FLOAT)
    model = g.unchecked({g.op("Transpose", wide, name="out", perm=[0, 2, 1]): ["batch", WIDE, "l"]})
    size = WIDE * WIDE * (4 if kind == FLOAT else 2)
    for index in range(LAYERS):
        tensor = model.graph.initializer.add(name=f"w{index}", data_type=kind, dims=[WIDE, WIDE])
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": f"{path.name}.data", "offset": index * size, "length": size}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
    with path.with_name(f"{path.name}.data").open("wb") as file:
        file.truncate(LAYERS * size)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_read_one_at_a_time(tmp_path: Path, kind: int, transposed: bool) -> None:
    path = deep(tmp_path / "deep.onnx", kind, transposed=transposed)
    one = 4 * WIDE * WIDE
    tracemalloc.start()
    try:
        model = open_model(path)
        opened, peak = tracemalloc.get_traced_memory()
        held = [model.weight(layer.weight) for layer in model.layers.values()]
        control, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held) == LAYERS
    assert opened < one
    assert peak < 3 * one
    assert control > LAYERS * one  # all of them at once would show
    assert model.stored is KINDS[kind]
    given = ir.to_proto(with_stored_weights(model.source)).SerializeToString()
    assert len(given) < 100_000  # ONNX Runtime reads the file's own weights
    assert all(
        isinstance(model.graph.initializers[layer.weight].const_value, WidenedTensor)
        for layer in model.layers.values()
    )


def test_external_weights_give_the_same(tmp_path: Path) -> None:
    low = in_16_bits(small_unet(), FP16)
    onnx.save(low, tmp_path / "one.onnx")
    onnx.save(
        low, tmp_path / "two.onnx", save_as_external_data=True, location="w", size_threshold=1024
    )
    one, two = (open_model(tmp_path / name) for name in ("one.onnx", "two.onnx"))
    assert two.has_external_data
    feed = unet_inputs(np.float16)
    results = [open_session(m.source, m.data_folder).run(None, feed)[0] for m in (one, two)]
    np.testing.assert_array_equal(*results)
    save_model(two.prepared, tmp_path / "wide.onnx", external=True)
    wide = load_model(tmp_path / "wide.onnx")
    assert {t.dtype for t in _weights(wide)} == {ir.DataType.FLOAT}


def _weights(model: ir.Model) -> list[ir.TensorProtocol]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [tensor for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point()]


def test_weights_in_nodes_behind_layout() -> None:
    g = small(BF16)
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensor = helper.make_tensor("t", BF16, [2, 4], array.ravel())
    weight = g.op("Constant", name="weight", value=tensor)
    g.op("MatMul", "x", g.op("Transpose", weight, name="turn", perm=[1, 0]), name="layer")
    model = read(typed(g, BF16, "layer_out"))
    Prepare()(model)
    value = next(node for node in model.graph if node.op_type == "MatMul").inputs[1]
    assert value is not None
    assert value.const_value is not None
    assert value.dtype == value.const_value.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(value.const_value.numpy(), array.T)
    np.testing.assert_array_equal(
        np.frombuffer(value.const_value.tobytes(), np.float32).reshape(4, 2), array.T
    )


@pytest.mark.parametrize(
    ("target", "stored", "expected"),
    [
        ("trt", "bf16", "bf16"),
        ("rtx", "bf16", "bf16"),
        ("rtx", "fp16", "fp16"),
        ("trt", "fp32", "fp16"),
        ("trt8", "fp16", "fp32"),
        ("ort", "fp16", "fp32"),
        ("ort", "bf16", "fp32"),
    ],
)
def test_the_default_type_follows_the_weights(target: str, stored: str, expected: str) -> None:
    assert default_float_type(TARGETS[target], FloatType(stored)).value == expected
