"""The public face: the names exist, come late, and do what docs/api.md shows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qvd_trt
from tests.house.markdown import blocks
from tests.models.small_unet import write_small_unet

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()
HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "polygraphy", "rich")


def imported(statement: str) -> set[str]:
    """The heavy modules that a fresh interpreter holds after a statement."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(HEAVY) & set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("import qvd_trt; qvd_trt.__version__; dir(qvd_trt)") == set()


def test_names_are_imported_when_they_are_used() -> None:
    assert "onnxruntime" in imported("import qvd_trt; qvd_trt.quantize")
    assert "torch" not in imported("import qvd_trt\nfor n in qvd_trt.__all__: getattr(qvd_trt, n)")


@pytest.mark.parametrize("name", sorted(qvd_trt.__all__))
def test_every_name_exists_and_is_declared_to_type_checkers(name: str) -> None:
    assert getattr(qvd_trt, name) is not None
    tree = ast.parse(Path(qvd_trt.__file__).read_text())
    declared = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert name in declared | {"__version__"}


def test_unknown_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        qvd_trt.quantise  # noqa: B018


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert qvd_trt.__version__ == version("qvd-trt")


@pytest.mark.parametrize("index", [0, 1])
def test_the_page_runs(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calibration").mkdir()
    rng = np.random.default_rng(0)
    for index_of_file in range(2):
        noise = rng.standard_normal((3, 1, 16, 8, 8), np.float32)
        steps = np.array([[900], [500], [100]])
        path = tmp_path / "calibration" / f"trajectory_{index_of_file}.npz"
        np.savez(path, sample=noise, timestep=steps)
    write_small_unet(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    block = list(blocks(PAGE, {"python"}))[index]
    names: dict[str, object] = {}
    exec(compile(block, "docs/api.md", "exec"), names)
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert ("model.w8a8.onnx", "stages.onnx")[index] in written
