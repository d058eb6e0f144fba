"""The video classes of diffusers export, with the axes that docs/exporting.md says are dynamic."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from qvd_trt.export.from_torch import ExportError
from tests.models.export_table import PAGE, export, rows
from tests.models.video_classes import VIDEO_CLASSES

# One that failed before the rewrites and exports in seconds.
QUICK = ("ltx",)
REFUSED = {
    "hunyuan15": r"values of a tensor .*transformer_hunyuan_video15\.py:\d+: if is_t2v:",
    "cogvideox_2b": r"lifted_tensor_0 is mutated in the forward method",
}


def check(name: str, folder: Path) -> None:
    denoiser = VIDEO_CLASSES[name]()
    if name in REFUSED:
        with pytest.raises(ExportError, match=REFUSED[name]):
            export(denoiser, folder / "m.onnx")
        return
    report = export(denoiser, folder / "m.onnx")
    for key, axes in denoiser.dynamic_dims.items():
        found = {i: d for i, d in enumerate(report.inputs[key]) if isinstance(d, str)}
        assert found == dict(axes)
    assert len(report.checks) == 3
    batches = {check.shapes["encoder_hidden_states"][0] for check in report.checks}
    assert batches == ({2} if name == "mochi" else {1, 2, 3})


@pytest.mark.parametrize("name", QUICK)
def test_class_that_had_a_trap(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VIDEO_CLASSES if name not in QUICK])
def test_every_other_class(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


def test_page_lists_every_class() -> None:
    table = rows(PAGE.read_text())
    assert list(table) == [build().name for build in VIDEO_CLASSES.values()]
    refused = {name for name, line in table.items() if "| no |" in line}
    assert refused == {VIDEO_CLASSES[name]().name for name in REFUSED}
