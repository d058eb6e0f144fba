from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "tensorrt", "tensorrt_rtx", "sklearn", "skimage")
NEEDS_TORCH = tuple(
    f"qvd_trt.export.{name}" for name in ("from_torch", "torch_patches", "trace_errors")
)


def modules(folder: str) -> list[str]:
    """Return the import names of all modules of a top-level folder."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return [f"qvd_trt.{name.removesuffix('.__init__')}" for name in names]


def imported_by(names: list[str], suspects: tuple[str, ...]) -> list[str]:
    """Return which of the suspects a fresh interpreter holds after importing the names."""
    script = (
        "import importlib, sys\n"
        "suspects, names = sys.argv[1].split(','), sys.argv[2].split(',')\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "print(*(name for name in suspects if name in sys.modules))\n"
    )
    command = [sys.executable, "-c", script, ",".join(suspects), ",".join(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("folder", ["calibrators", "export", "tools", "trt_plugins"])
def test_no_module_needs_an_extra(folder: str) -> None:
    names = [name for name in modules(folder) if name not in NEEDS_TORCH]
    assert names
    assert imported_by(names, HEAVY) == []


@pytest.mark.parametrize("name", ["export", "build", "validate"])
def test_command_starts_without_the_runtime(name: str) -> None:
    """`--help` and a wrong argument are answered at once."""
    suspects = (*HEAVY, "onnx", "onnx_ir", "onnxruntime", "polygraphy", "rich")
    assert imported_by([f"qvd_trt.tools.cli.{name}"], suspects) == []


def test_suspects_are_found() -> None:
    """Negative control: a heavy import is seen."""
    assert imported_by(["onnxruntime"], ("onnxruntime", "torch")) == ["onnxruntime"]
