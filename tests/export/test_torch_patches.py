"""Rewrites of torch calls: equal to torch's own, and each trap shuts without its rewrite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from qvd_trt.export import from_torch, torch_patches  # noqa: E402
from qvd_trt.export.from_torch import ExportError, export_denoiser  # noqa: E402
from qvd_trt.export.torch_patches import ExportableCalls  # noqa: E402

MASK = torch.tensor([[True, False, True], [False, False, True]])
FLAGS = torch.tensor([[True, True, False], [False, True, False]])


@pytest.mark.parametrize("value", [True, False, torch.tensor(True), 2.0])
@pytest.mark.parametrize("of", [FLAGS, FLAGS[0], FLAGS.float()])
def test_masked_fill_equals_torch(of: Tensor, value: Any) -> None:
    expected = of.masked_fill(MASK, value)
    with ExportableCalls():
        found = of.masked_fill(MASK, value)
        by_name = torch.masked_fill(of, mask=MASK, value=value)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert torch.equal(by_name, expected)


def test_masked_fill_in_place_changes_its_tensor() -> None:
    flags = FLAGS.clone()
    with ExportableCalls():
        returned = flags.masked_fill_(MASK, False)
    assert returned is flags
    assert torch.equal(flags, FLAGS.clone().masked_fill_(MASK, False))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.squeeze(1),
        lambda x: x.squeeze(0),
        lambda x: torch.squeeze(x, dim=-2),
        lambda x: x.squeeze(),
        lambda x: x.squeeze((0, 1)),
        lambda x: x.squeeze(-1),
        lambda x: x.repeat_interleave(torch.tensor(2), dim=1),
        lambda x: torch.linspace(0, 5, 4),
        lambda x: torch.masked_fill(x, x > 1, 0.5),
    ],
)
def test_calls_without_a_trap_stay(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(6.0).reshape(1, 1, 6)
    with ExportableCalls():
        found = call(x)
    assert torch.equal(found, call(x))


@pytest.mark.parametrize(
    "call",
    [
        lambda z: torch.cat(z.split([2, 4], dim=-1)[::-1], dim=-1),
        lambda z: z.split(split_size=2, dim=2)[2],
        lambda z: z.conj().split(4, -1)[1],
        lambda z: z.expand(3, -1, 6),
        lambda z: z.expand((2, 3, 1, 6)),
        lambda z: z.unsqueeze(-1),
        lambda z: torch.unsqueeze(z, dim=0),
        lambda z: z[None, 0, ..., 2:5],
        lambda z: z[..., 1],
        lambda z: z[0, :, torch.tensor([3, 1])],
        lambda z: z[z.real > 2],
        lambda z: z[...],
    ],
)
def test_complex_calls_equal_torch(call: Callable[[Tensor], Tensor]) -> None:
    z = torch.complex(torch.arange(6.0), -torch.ones(6)).reshape(1, 1, 6)
    with ExportableCalls():
        found = call(z)
    assert found.shape == call(z).shape
    assert torch.equal(found, call(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("start", "end", "steps"), [(0, 7.5, 9), (-3.2, 3.2, 8), (1, 1, 4), (2, 9, 1)]
)
def test_linspace_equals_torch(start: float, end: float, steps: int, dtype: Any) -> None:
    """Symbolic counts appear in a trace only: here the rewrite is told that 9 is one."""
    expected = torch.linspace(start, end, steps, dtype=dtype)
    found = torch_patches.linspace(start, end, steps, dtype=dtype)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert (found[0], found[-1]) == (expected[0], expected[-1])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 12, 13])
@pytest.mark.parametrize("count", [1, 3, 6, None])
def test_adaptive_average_equals_torch(size: int, count: int | None) -> None:
    values = torch.randn(2, 3, size, 4, generator=torch.Generator().manual_seed(size))
    expected = functional.adaptive_avg_pool2d(values, (count, None))
    found = torch_patches.adaptive_average(values, -2, count)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    turned = torch_patches.adaptive_average(values.mT, -1, count)
    np.testing.assert_allclose(turned, expected.mT, rtol=1e-5, atol=1e-6)


class BoolFill(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        keep = torch.ones(x.shape, dtype=torch.bool).masked_fill(x > y, False)
        return torch.where(keep, x, y)


class SqueezeTokens(nn.Module):
    """Allegro's end: a squeeze of the tokens, which were frames once."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return (x + y).squeeze(1).reshape(x.shape[0], x.shape[1], 2, -1)


class SqueezeChannels(nn.Module):
    """LTX-2's: a squeeze of an axis of constant size, which is not 1."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return (x * y).squeeze(2).flatten(1).reshape(x.shape[0], -1, 2)


class Positions(nn.Module):
    """Mochi's positions: a table of the width of x, centred."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        width = x.shape[1]
        half = width * (64 / width) ** 0.5 / 2
        return x + y * torch.linspace(-half, half, width)[None, :, None]


class TiedBatch(nn.Module):
    """LTX's embedding: the batch of x divides the elements of the other, of equal batch."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        scale: Tensor = y[:, 0].view(x.shape[0], -1, y.shape[-1])
        return x * (1 + scale)


class NumpyRoot(nn.Module):
    """Cosmos' norm: numpy's root of a ratio of sizes."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return y / torch.add(1e-6, norm, alpha=np.sqrt(norm.numel() / x.numel()))


class ComplexRotary(nn.Module):
    """AnyFlow's rotary embedding: a complex table, split and multiplied."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        angles = torch.outer(torch.arange(16.0), torch.tensor([1.0, 0.1]))
        table = torch.polar(torch.ones_like(angles), angles)
        width = x.shape[1]
        parts = table.split_with_sizes([1, 1], dim=1)
        table = torch.cat([part[:width].expand(width, 1) for part in parts], dim=1)
        turned = torch.view_as_complex((x + y).reshape(*x.shape[:2], 2, 2)) * table[None]
        return torch.view_as_real(turned).flatten(2)


class Pooled(nn.Module):
    """I2VGenXL's image context: windows whose sizes depend on what the width divides."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return functional.adaptive_avg_pool2d((x + y)[:, None], (5, 3))


class CountInTensor(nn.Module):
    """Cosmos' attention when it is exported: a ratio of head sizes as a tensor."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        count = torch.tensor(x.shape[2]) // torch.tensor(2)
        key = x[..., :2].repeat_interleave(count, dim=2)
        return functional.scaled_dot_product_attention(y[:, None], key[:, None], y[:, None])


TRAPS: dict[str, type[nn.Module]] = {
    trap.__name__: trap
    for trap in (
        BoolFill,
        SqueezeTokens,
        SqueezeChannels,
        Positions,
        TiedBatch,
        NumpyRoot,
        ComplexRotary,
        Pooled,
        CountInTensor,
    )
}


def inputs(batch: int, width: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(batch)
    return {name: torch.randn(batch, width, 4, generator=rng) for name in ("x", "y")}


def export(module: nn.Module, path: Path) -> float:
    dims = {key: {0: "batch", 1: "width"} for key in ("x", "y")}
    report = export_denoiser(
        module, inputs(2, 5), dims, path, verify_inputs=[inputs(1, 3), inputs(3, 8)]
    )
    assert report.inputs == dict.fromkeys(("x", "y"), ("batch", "width", 4))
    return report.max_relative_error


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPS)
def test_trap_exports_right(name: str, tmp_path: Path) -> None:
    assert export(TRAPS[name](), tmp_path / "m.onnx") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPS)
def test_trap_fails_without_the_rewrite(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once this no longer raises, the exporter is mended and the rewrite can go."""
    monkeypatch.setattr(from_torch, "ExportableCalls", contextlib.nullcontext)
    monkeypatch.setattr(from_torch, "tied_axes", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(from_torch, "SYMBOLIC_TRANSLATIONS", None)
    with pytest.raises(ExportError):
        export(TRAPS[name](), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class FaintlyPooled(Pooled):
    """A wrong branch that changes little: less than the default tolerance."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return 5000 + super().forward(x, y)


@pytest.mark.slow
def test_branch_that_changes_little_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right at the example, wrong by less than 1e-3 elsewhere."""
    assert export(FaintlyPooled(), tmp_path / "m.onnx") < 1e-6
    (tmp_path / "m.onnx").unlink()
    monkeypatch.setattr(from_torch, "ExportableCalls", contextlib.nullcontext)
    with pytest.raises(ExportError, match=r"error \S+, where rounding gives \S+ at the example"):
        export(FaintlyPooled(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_set_on_torch() -> None:
    power = torch.SymFloat.__pow__
    assert not hasattr(torch.SymFloat, "sqrt")
    with contextlib.suppress(ZeroDivisionError), ExportableCalls(), ExportableCalls():
        assert hasattr(torch.SymFloat, "sqrt")
        assert torch.SymFloat.__pow__ is not power
        1 / 0  # noqa: B018
    assert not hasattr(torch.SymFloat, "sqrt")
    assert torch.SymFloat.__pow__ is power
