"""The way to TensorRT 10 and 11, with TensorRT-RTX in their place.

Both share their Python bindings, and the real ones cannot build without a GPU. It shows that the
calls exist and are taken, not what the real builder makes of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")

from tests.models.small_unet import write_small_unet

SCRIPT = """
import sys, types
from dataclasses import replace
from pathlib import Path

import tensorrt_rtx

version, folder = sys.argv[1], Path(sys.argv[2])
module = types.ModuleType("tensorrt")
module.__dict__.update(tensorrt_rtx.__dict__, __name__="tensorrt", __version__=version)
module.get_plugin_registry = lambda: types.SimpleNamespace(load_library=lambda path: path)
sys.modules["tensorrt"] = module

from qvd_trt.tools.engine.build_plan import BuildPlan
from qvd_trt.tools.engine.compiler import compile_plan
from qvd_trt.tools.engine.shape_ranges import parse_shape_range
from qvd_trt.tools.engine.tensorrt_install import find_tensorrt

install = find_tensorrt("tensorrt")
plan = BuildPlan(
    model=folder / "m.onnx",
    kind=install.kind,
    version=install.version,
    shapes=tuple(map(parse_shape_range, ("sample:1x16x16x16", "timestep:1"))),
    timing_cache=folder / "times.cache",
    workspace=1 << 28,
    optimization_level=2,
)
first = compile_plan(plan)
again = compile_plan(plan)  # reads the cache
embedded = compile_plan(replace(plan, plugin=folder / "lib.so"))
print(install.kind, len(first.engine), len(again.engine), len(embedded.engine))
"""


@pytest.mark.parametrize("version", ["10.7.0.post1", "11.1.0"])
def test_strongly_typed_build(version: str, tmp_path: Path) -> None:
    write_small_unet(tmp_path / "m.onnx")
    (tmp_path / "lib.so").write_bytes(bytes(100_000))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, version, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kind, first, again, embedded = done.stdout.split()
    assert kind == "tensorrt"
    assert int(first) == int(again) > 10_000
    assert int(embedded) - int(first) >= 100_000
    assert (tmp_path / "times.cache").stat().st_size > 0
