"""What a failed export says: at once and in torch's words, or the axis to fix and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from qvd_trt.export import from_torch  # noqa: E402
from qvd_trt.export.from_torch import ExportError, export_denoiser  # noqa: E402

DIMS = {"x": {0: "batch", 1: "width"}}


def refusal(module: nn.Module, path: Path, *shapes: tuple[int, ...], **options: Any) -> str:
    """The one line with which `module` is refused; nothing is left behind."""
    first, *others = ({"x": torch.randn(shape)} for shape in shapes or ((2, 6),))
    with pytest.raises(ExportError) as caught:
        export_denoiser(module, first, DIMS, path / "m.onnx", verify_inputs=others, **options)
    assert list(path.iterdir()) == []
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def never_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(*_: Any) -> None:
        pytest.fail("traced")

    monkeypatch.setattr(from_torch, "_trace", trace)


class TestBeforeTheTrace:
    @pytest.mark.usefixtures("never_traced")
    @pytest.mark.parametrize("shapes", [((2, 5),), ((2, 6), (1, 6), (2, 5))])
    def test_input_the_module_refuses(self, tmp_path: Path, shapes: tuple[Any, ...]) -> None:
        line = _linear(tmp_path, shapes)
        assert "itself fails at {'x': (2, 5)}: mat1 and mat2 shapes cannot be multiplied" in line

    @pytest.mark.usefixtures("never_traced")
    def test_number_of_outputs(self, tmp_path: Path) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x, -x

        assert "Two returns 2 tensors, output_names has 1: ['out']" in refusal(Two(), tmp_path)

    @pytest.mark.usefixtures("never_traced")
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bit_module(self, tmp_path: Path, dtype: Any) -> None:
        line = _linear(tmp_path, ((2, 6),), dtype)
        name = str(dtype).removeprefix("torch.")
        assert f"parameter 'linear.weight' of Linears is {name}" in line
        assert "needs float32: pass module.float()" in line

    @pytest.mark.usefixtures("never_traced")
    def test_16_bit_input(self, tmp_path: Path) -> None:
        class Negative(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return -x

        with pytest.raises(ExportError, match="input 'x' of Negative is bfloat16"):
            export_denoiser(
                Negative(), {"x": torch.ones(2, 6).bfloat16()}, DIMS, tmp_path / "m.onnx"
            )


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        out: Tensor = self.linear(x)
        return out


def _linear(path: Path, shapes: tuple[Any, ...], dtype: Any = torch.float32) -> str:
    return refusal(Linears().to(dtype), path, *shapes)


class Looped(nn.Module):
    """A loop over the items of the batch, as Mochi's attention has."""

    def forward(self, x: Tensor) -> Any:
        return torch.stack([x[item] * (item + 1) for item in range(x.shape[0])])


class Compared(nn.Module):
    """A ratio of sizes that is compared, as in EasyAnimate's rotary grid."""

    def forward(self, x: Tensor) -> Any:
        return x * (2 if x.shape[1] / 4 > 1.2 else 3)


class Rounded(nn.Module):
    """A size rounded by Python, as there too."""

    def forward(self, x: Tensor) -> Any:
        size = round(x.shape[1] * 0.3)
        return x * size if size > 1 else x * int(size)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Any:
        if x.sum() > 0:
            return x
        return -x


class Table(nn.Module):
    """Latte's: a table for the width that it was made for, computed for any other."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, x: Tensor) -> Any:
        return x + (self.table if x.shape[1] == 6 else torch.arange(x.shape[1]).float())


class TestAxis:
    @pytest.mark.slow
    def test_batch_that_is_looped_over(self, tmp_path: Path) -> None:
        line = refusal(Looped(), tmp_path)
        assert "failed on Looped: it must be fixed: axis 0 ('batch') of 'x' at 2, because" in line
        assert "width" not in line

    @pytest.mark.slow
    def test_size_that_python_rounds(self, tmp_path: Path) -> None:
        line = refusal(Rounded(), tmp_path)
        assert "failed on Rounded: it was traced, but ONNX has no form of it" in line
        assert "<built-in function round>" in line
        assert "must be fixed" in line

    @pytest.mark.slow
    def test_ratio_that_is_compared(self, tmp_path: Path) -> None:
        line = refusal(Compared(), tmp_path)
        assert "failed on Compared: ['width'] must be fixed, because of them torch says: " in line

    def test_branch_on_values_names_its_line(self, tmp_path: Path) -> None:
        line = refusal(Branching(), tmp_path)
        assert "depends on the values of a tensor" in line
        assert "test_trace_errors.py:" in line
        assert "if x.sum() > 0" in line

    @pytest.mark.slow
    def test_table_is_traced_at_another_size(self, tmp_path: Path) -> None:
        """At the size that the table is for there is no telling it from a constant."""
        assert "axis 1 ('width') of 'x' at 6" in refusal(Table(), tmp_path, (2, 6), (1, 6))
        report = export_denoiser(
            Table(),
            {"x": torch.randn(2, 6)},
            DIMS,
            tmp_path / "m.onnx",
            verify_inputs=[{"x": torch.randn(3, 9)}],
        )
        assert report.inputs == {"x": ("batch", "width")}
        assert [check.shapes["x"] for check in report.checks] == [(2, 6), (3, 9)]
