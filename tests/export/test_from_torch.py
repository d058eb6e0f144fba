"""The torch exporter: agreement, negative controls, metadata, and what a failure leaves behind."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.utils import BaseOutput  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from qvd_trt.export import from_torch  # noqa: E402
from qvd_trt.export.from_torch import ExportError, export_denoiser  # noqa: E402
from qvd_trt.export.graph.find_layers import NAME_SCOPES  # noqa: E402
from qvd_trt.export.torch_patches import ExportableCalls  # noqa: E402
from tests.models.architectures import ARCHITECTURES, Denoiser  # noqa: E402
from tests.models.cache import exported  # noqa: E402

# The machine's paths that an exporter could leak: the packages' and this checkout's.
PRIVATE_PATHS = (str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[2]))


@dataclass(frozen=True, slots=True)
class Exported:
    denoiser: Denoiser
    path: Path


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Exported:
    assert pytestconfig.cache is not None
    path = exported(request.param, pytestconfig.cache.mkdir("models"))
    return Exported(ARCHITECTURES[request.param](), path)


class TestArchitectures:
    def test_file_agrees_with_torch_at_every_shape(self, architecture: Exported) -> None:
        denoiser = architecture.denoiser
        session = ort.InferenceSession(architecture.path, providers=["CPUExecutionProvider"])
        batches = set()
        for inputs in (denoiser.example_inputs, *denoiser.verify_inputs):
            with torch.no_grad():
                expected = denoiser.module(**inputs).numpy()
            (out,) = session.run(["out"], {name: t.numpy() for name, t in inputs.items()})
            assert out.shape == expected.shape
            assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()
            batches.add(out.shape[0])
        assert {1, 2} <= batches

    def test_interface_is_the_diffusers_one(self, architecture: Exported) -> None:
        graph = ir.load(architecture.path).graph
        assert [v.name for v in graph.inputs] == list(architecture.denoiser.example_inputs)
        assert [v.name for v in graph.outputs] == ["out"]
        for value in graph.inputs:
            axes = architecture.denoiser.dynamic_dims.get(value.name or "", {})
            assert value.shape is not None
            assert {i: str(d) for i, d in enumerate(value.shape) if not isinstance(d, int)} == axes

    def test_file_holds_no_path_but_the_name_scopes(self, architecture: Exported) -> None:
        content = architecture.path.read_bytes()
        for private in (*PRIVATE_PATHS, "site-packages", "stack_trace"):
            assert private.encode() not in content
        nodes = list(ir.load(architecture.path).graph.all_nodes())
        scoped = [n for n in nodes if NAME_SCOPES in n.metadata_props]
        assert len(scoped) > 0.8 * len(nodes)
        assert all(set(n.metadata_props) <= {NAME_SCOPES} for n in nodes)


class Repeating(nn.Module):
    """The trap: each item's embedding [b, 4], repeated once a frame of x [b, f, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        frames = x.shape[1]
        repeated = self.linear(embedding).repeat_interleave(
            frames, dim=0, output_size=embedding.shape[0] * frames
        )
        out: Tensor = x.flatten(0, 1) * repeated
        return out


REPEATING_DIMS = {"x": {0: "batch", 1: "frames"}, "embedding": {0: "batch"}}


def repeating_inputs(batch: int, frames: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, frames, 4), "embedding": torch.randn(batch, 4)}


def export_repeating(path: Path, **options: Any) -> from_torch.ExportReport:
    return export_denoiser(Repeating(), repeating_inputs(2, 3), REPEATING_DIMS, path, **options)


class TestRepeatInterleave:
    def test_trap_exports_right(self, tmp_path: Path) -> None:
        report = export_repeating(
            tmp_path / "m.onnx", verify_inputs=[repeating_inputs(1, 4), repeating_inputs(3, 5)]
        )
        assert report.max_relative_error < 1e-6
        assert [c.shapes["x"] for c in report.checks] == [(2, 3, 4), (1, 4, 4), (3, 5, 4)]
        assert report.inputs == {"x": ("batch", "frames", 4), "embedding": ("batch", 4)}
        assert (report.parameters, report.opset, report.external_data) == (20, 20, None)

    def test_trap_fails_without_the_rewrite(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once this no longer raises, the exporter is mended and the rewrite can go."""
        monkeypatch.setattr(from_torch, "ExportableCalls", contextlib.nullcontext)
        with pytest.raises(ExportError, match=r"fails at .*'x': \(2, 3, 4\)"):
            export_repeating(tmp_path / "m.onnx")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "call",
        [
            lambda x: x.repeat_interleave(3, dim=0),
            lambda x: x.repeat_interleave(3, 1, output_size=9),
            lambda x: torch.repeat_interleave(x, 2, dim=-1),
            lambda x: torch.repeat_interleave(input=x, repeats=1, dim=1),
            lambda x: x.repeat_interleave(0, dim=1),
            lambda x: x.repeat_interleave(4),
            lambda x: x.repeat_interleave(torch.tensor([1, 0, 2]), dim=1),
            lambda x: torch.repeat_interleave(torch.tensor([1, 0, 2])),
        ],
    )
    def test_rewrite_equals_torch(self, call: Callable[[Tensor], Tensor]) -> None:
        x = torch.arange(24.0).reshape(2, 3, 4)
        with ExportableCalls():
            rewritten = call(x)
        assert torch.equal(rewritten, call(x))

    def test_rewrite_ends_with_its_context(self) -> None:
        before = torch.Tensor.repeat_interleave
        with ExportableCalls():
            inside = torch.ones(2).requires_grad_().repeat_interleave(2)
        outside = torch.ones(2).requires_grad_().repeat_interleave(2)
        assert torch.Tensor.repeat_interleave is before
        assert inside.grad_fn is not None
        assert "Repeat" not in inside.grad_fn.name()
        assert outside.grad_fn is not None
        assert inside.grad_fn.name() != outside.grad_fn.name()


class TestFailures:
    def test_corrupted_weight_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def corrupt(model: ir.Model) -> None:
            weight = next(v for v in model.graph.initializers.values() if "weight" in str(v.name))
            assert weight.const_value is not None
            weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01, name=weight.name)

        monkeypatch.setattr(from_torch, "_strip_metadata", corrupt)
        older = tmp_path / "m.onnx"
        older.write_bytes(b"older")
        with pytest.raises(ExportError, match=r"'out' disagrees with torch at .* tolerance 0\.001"):
            export_repeating(older)
        assert older.read_bytes() == b"older"
        assert list(tmp_path.iterdir()) == [older]

    def test_fixed_batch_is_found_at_another_batch(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="baked in"):
            export_denoiser(
                Repeating(),
                repeating_inputs(2, 3),
                {},
                tmp_path / "m.onnx",
                verify_inputs=[repeating_inputs(3, 3)],
            )
        assert list(tmp_path.iterdir()) == []

    def test_untraceable_module(self, tmp_path: Path) -> None:
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if float(x.sum()) > 0 else -x

        with pytest.raises(ExportError, match=r"failed on Branching: .*data-dependent"):
            export_denoiser(Branching(), {"x": torch.ones(2)}, {}, tmp_path / "m.onnx")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("inputs", "dims", "verify", "names", "message"),
        [
            (("x",), {}, (), (), "output_names is empty"),
            (("x", "y"), {}, (), ("out",), r"takes no \['y'\]"),
            (("x",), {"y": {0: "b"}}, (), ("out",), "'y', which is no input"),
            (("x",), {"x": {2: "b"}}, (), ("out",), r"axes \[2\] of 'x'"),
            (("x",), {}, ({},), ("out",), r"verify_inputs\[0\] has inputs \[\]"),
        ],
    )
    def test_arguments_that_do_not_fit(
        self,
        tmp_path: Path,
        inputs: tuple[str, ...],
        dims: dict[str, dict[int, str]],
        verify: tuple[dict[str, Tensor], ...],
        names: tuple[str, ...],
        message: str,
    ) -> None:
        class Negative(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return -x

        example = {name: torch.ones(2, 3) for name in inputs}
        with pytest.raises(ValueError, match=message):
            export_denoiser(
                Negative(),
                example,
                dims,
                tmp_path / "m.onnx",
                verify_inputs=verify,
                output_names=names,
            )


class TestWriting:
    def test_large_weights_go_beside_the_model(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "m.onnx"
        inline = export_repeating(path)
        assert list(path.parent.iterdir()) == [path]
        split = export_repeating(path, external_data_threshold=0)
        assert (inline.external_data, split.external_data) == (None, path.with_name("m.onnx.data"))
        assert sorted(path.parent.iterdir()) == [path, path.with_name("m.onnx.data")]
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        feeds = {name: t.numpy() for name, t in repeating_inputs(2, 5).items()}
        assert session.run(None, feeds)[0].shape == (10, 4)

    def test_paths_would_leak_without_stripping(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export_repeating(tmp_path / "clean.onnx")
        monkeypatch.setattr(from_torch, "_strip_metadata", lambda model: None)
        export_repeating(tmp_path / "leaky.onnx")
        checkout = PRIVATE_PATHS[1].encode()
        assert checkout not in (tmp_path / "clean.onnx").read_bytes()
        assert checkout in (tmp_path / "leaky.onnx").read_bytes()

    def test_dataclass_outputs_input_order_and_training_mode(self, tmp_path: Path) -> None:
        @dataclass
        class Output(BaseOutput):  # type: ignore[misc]
            sample: Tensor
            features: Tensor

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.dropout = nn.Dropout(0.5)
                self.frozen = nn.Dropout(0.5).eval()

            def forward(self, x: Tensor, timestep: Tensor, unused: int = 0) -> Output:
                h = self.frozen(self.dropout(x)) * timestep
                return Output(sample=h, features=h.sum(0))

        module = Module()
        report = export_denoiser(
            module,
            {"timestep": torch.tensor(3), "x": torch.randn(2, 4)},
            {"x": {0: "batch"}},
            tmp_path / "m.onnx",
            output_names=("out", "features"),
            verify_inputs=[{"x": torch.randn(5, 4), "timestep": torch.tensor(7)}],
        )
        assert list(report.inputs.items()) == [("x", ("batch", 4)), ("timestep", ())]
        assert report.outputs == {"out": ("batch", 4), "features": (4,)}
        assert (module.dropout.training, module.frozen.training) == (True, False)


def test_package_alone_does_not_import_torch() -> None:
    script = "import sys, qvd_trt.export; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
