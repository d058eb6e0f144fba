"""Engines: what is converted, and what is refused."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine import engine_session
from qvd_trt.tools.engine.array_cast import cast_exactly
from qvd_trt.tools.engine.engine_session import DeviceTensor, EngineSession
from qvd_trt.tools.engine.tensorrt_install import TensorRTInstall
from tests.gpu import has_gpu
from tests.tools.validate import fake_tensorrt
from tests.tools.validate.validated import OUTPUT, Validate, calls, relative_rms, run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    install = TensorRTInstall("tensorrt", (8, 6, 0), fake_tensorrt.module)  # type: ignore[arg-type]
    monkeypatch.setattr(engine_session, "find_tensorrt", lambda runtime: install)
    monkeypatch.setattr(engine_session, "_require_gpu", lambda: None)
    backend: Any = SimpleNamespace(TrtRunner=fake_tensorrt.Runner)
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", backend)


def session(folder: Path, content: str = "FLOAT") -> EngineSession:
    (folder / "e.plan").write_text(content)
    return EngineSession(folder / "e.plan")


def place(array: Any) -> DeviceTensor:
    return DeviceTensor(array.ctypes.data, array.shape, str(array.dtype))


X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.usefixtures("fake")
class TestHostArrays:
    def test_int64_becomes_int32(self, tmp_path: Path) -> None:
        with session(tmp_path) as engine:
            outputs = engine.run({"x": X, "t": np.array([3])})
        assert outputs["y"].dtype == np.float32
        np.testing.assert_array_equal(outputs["y"], X + 3)

    def test_fp16_engine(self, tmp_path: Path) -> None:
        with session(tmp_path, "HALF") as engine:
            outputs = engine.run({"x": X + np.float32(0.1), "t": np.array([3])})
        assert outputs["y"].dtype == np.float32
        np.testing.assert_allclose(outputs["y"], X + 3.1, rtol=1e-3)
        assert not np.array_equal(outputs["y"], X + np.float32(3.1))

    def test_outputs_outlive_the_next_run(self, tmp_path: Path) -> None:
        with session(tmp_path) as engine:
            first = engine.run({"x": X, "t": np.array([0])})["y"]
            engine.run({"x": X, "t": np.array([9])})
        np.testing.assert_array_equal(first, X)

    def test_slices_are_made_contiguous(self, tmp_path: Path) -> None:
        with session(tmp_path) as engine:
            outputs = engine.run({"x": np.repeat(X, 2, axis=0)[::2], "t": np.array([1])})
        np.testing.assert_array_equal(outputs["y"], X + 1)

    def test_numpy_has_no_bfloat16(self, tmp_path: Path) -> None:
        with session(tmp_path, "BF16") as engine, pytest.raises(UserError, match="'y' is bfloat16"):
            engine.run({"x": X, "t": np.array([1])})

    @pytest.mark.parametrize(
        ("inputs", "said"),
        [
            ({"x": X}, "no array for the engine's input 't'"),
            ({"x": np.zeros((9, 4), np.float32), "t": np.array([1])}, "[1, 4] to [8, 4]"),
            ({"x": np.zeros((2, 5), np.float32), "t": np.array([1])}, "[2, 5]"),
            ({"x": X, "t": np.array([1, 2])}, "the engine takes [1]"),
            ({"x": X, "t": np.array([2**40])}, "1099511627776 cannot be given as int32"),
            ({"x": X, "t": np.array([0.5], np.float32)}, "0.5 cannot be given as int32"),
        ],
    )
    def test_refused(self, tmp_path: Path, inputs: Any, said: str) -> None:
        with session(tmp_path) as engine, pytest.raises(UserError) as refusal:
            engine.run(inputs)
        assert said in str(refusal.value)


@pytest.mark.usefixtures("fake")
class TestDeviceMemory:
    def test_run(self, tmp_path: Path) -> None:
        t, y = np.array([5], np.int32), np.zeros_like(X)
        with session(tmp_path) as engine:
            assert engine.output_shapes({"x": (2, 4), "t": (1,)}) == {"y": (2, 4)}
            engine.run_device({"x": place(X), "t": place(t)}, {"y": place(y)}, fake_tensorrt.STREAM)
        np.testing.assert_array_equal(y, X + 5)

    def test_run_after_host_arrays(self, tmp_path: Path) -> None:
        t, y = np.array([5], np.int32), np.zeros_like(X)
        with session(tmp_path) as engine:
            engine.run({"x": X, "t": t})
            engine.run_device({"x": place(X), "t": place(t)}, {"y": place(y)}, fake_tensorrt.STREAM)
        np.testing.assert_array_equal(y, X + 5)

    def test_nothing_is_converted(self, tmp_path: Path) -> None:
        inputs = {"x": place(X), "t": place(np.array([5]))}
        with (
            session(tmp_path) as engine,
            pytest.raises(UserError, match="engine takes int32"),
        ):
            engine.run_device(inputs, {"y": place(np.zeros_like(X))}, 0)

    def test_address_that_tensorrt_refuses(self, tmp_path: Path) -> None:
        inputs = {"x": DeviceTensor(0, (2, 4), "float32"), "t": place(np.array([5], np.int32))}
        with session(tmp_path) as engine, pytest.raises(UserError, match="address 0x0 for 'x'"):
            engine.run_device(inputs, {"y": place(np.zeros_like(X))}, 0)

    def test_output_of_another_shape(self, tmp_path: Path) -> None:
        inputs = {"x": place(X), "t": place(np.array([5], np.int32))}
        with session(tmp_path) as engine, pytest.raises(UserError, match=r"needs shape \[2, 4\]"):
            engine.run_device(inputs, {"y": place(np.zeros((3, 4), np.float32))}, 0)


class TestLoading:
    @pytest.mark.usefixtures("fake")
    def test_engine_of_another_version(self, tmp_path: Path) -> None:
        with pytest.raises(UserError) as refusal:
            session(tmp_path, "other")
        said = str(refusal.value)
        assert "e.plan cannot be loaded by TensorRT 8.6.0: Version tag does not match;" in said

    @pytest.mark.usefixtures("fake")
    def test_unsupported_type(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="unsupported type FP8"):
            session(tmp_path, "FP8")

    @pytest.mark.usefixtures("fake")
    def test_missing_plugin(self, tmp_path: Path) -> None:
        (tmp_path / "e.plan").write_text("FLOAT")
        with pytest.raises(UserError, match=r"none\.so does not exist"):
            EngineSession(tmp_path / "e.plan", plugin=Path("none.so"))
        with pytest.raises(UserError, match=r"--plugin \S+ is a folder; name the built library"):
            EngineSession(tmp_path / "e.plan", plugin=tmp_path)

    @pytest.mark.skipif(has_gpu(), reason="there is a GPU")
    def test_no_gpu(self, validate: Validate, tmp_path: Path) -> None:
        pytest.importorskip("tensorrt_rtx")
        (tmp_path / "e.plan").write_bytes(b"engine")
        line = validate.refused("--engine", tmp_path / "e.plan", "--runtime", "rtx")
        assert "need an NVIDIA GPU" in line
        assert "--engine-outputs" in line


class TestCast:
    def test_keeps_values(self) -> None:
        steps = np.array([0, 999])
        assert cast_exactly(steps, "int32", "t").dtype == np.int32
        assert cast_exactly(steps, "float32", "t").tolist() == [0, 999]
        assert cast_exactly(np.array([4.0]), "int64", "t").tolist() == [4]
        assert cast_exactly(steps, "int64", "t") is steps

    @pytest.mark.parametrize(
        ("array", "dtype"),
        [
            (np.array([2**24 + 1]), "float32"),
            (np.array([1e6], np.float32), "float16"),
            (np.array(-1), "uint8"),
            (np.array([1.0]), "bfloat15"),
        ],
    )
    def test_refuses(self, array: Any, dtype: str) -> None:
        with pytest.raises(UserError):
            cast_exactly(array, dtype, "input")


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
def test_a_real_engine(validate: Validate, tmp_path: Path) -> None:
    """The QDQ file built by the installed TensorRT: near to ONNX Runtime, and not equal to it."""
    trt = pytest.importorskip("tensorrt")
    path, qdq = tmp_path / "qdq.plan", validate.models.folder / "qdq8.onnx"
    path.write_bytes(_build(trt, qdq))
    summary = validate.report("--engine", path, qdq=qdq)["summary"]
    floor = summary["rounding_floor"]["mean_relative_rms"]
    assert 0 < summary["implementation"]["mean_relative_rms"] < 3 * floor
    assert summary["total"]["mean_sqnr"] > summary["quantization"]["mean_sqnr"] - 3
    feeds = calls()
    expected = run(qdq, feeds)
    with EngineSession(path) as engine:
        for feed, output in zip(feeds, expected, strict=True):
            on_host = engine.run(feed)[OUTPUT]
            assert relative_rms(output, on_host) < 3 * floor
            np.testing.assert_array_equal(_run_on_device(engine, feed), on_host)


def _run_on_device(engine: EngineSession, feed: Mapping[str, AnyArray]) -> AnyArray:
    """The output, from device memory that this function owns."""
    from polygraphy import cuda

    with ExitStack() as owned:
        stream = owned.enter_context(cuda.Stream())

        def place(array: AnyArray) -> tuple[Any, DeviceTensor]:
            memory = owned.enter_context(cuda.DeviceArray(array.shape, array.dtype))
            memory.copy_from(np.ascontiguousarray(array))
            return memory, DeviceTensor(memory.ptr, array.shape, str(array.dtype))

        inputs = {
            name: place(feed[name].astype(spec.dtype))[1] for name, spec in engine.inputs.items()
        }
        shapes = engine.output_shapes({name: tensor.shape for name, tensor in inputs.items()})
        memory, output = place(np.zeros(shapes[OUTPUT], engine.outputs[OUTPUT].dtype))
        engine.run_device(inputs, {OUTPUT: output}, stream.ptr)
        stream.synchronize()
        return memory.copy_to(np.empty(output.shape, output.dtype))  # type: ignore[no-any-return]


def _build(trt: Any, model: Path) -> bytes:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    creation = trt.NetworkDefinitionCreationFlag
    flags = 0
    with contextlib.suppress(AttributeError):  # gone in TensorRT 11
        flags = 1 << int(creation.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.read_bytes()), parser.get_error(0)
    config = builder.create_builder_config()
    for name in ("INT8", "FP16"):
        with contextlib.suppress(AttributeError):
            config.set_flag(getattr(trt.BuilderFlag, name))
    config.builder_optimization_level = 0
    profile = builder.create_optimization_profile()
    profile.set_shape("sample", *[(1, 16, 8, 8)] * 3)
    profile.set_shape("timestep", *[(1,)] * 3)
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))
