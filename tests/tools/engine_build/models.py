"""The small UNet in every form that a build may be given."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from qvd_trt.tools.cli.export import main
from tests.models.small_unet import write_small_unet
from tests.tools.command import FAST

FORMS = {
    "ort": ("--target", "ort"),
    "rtx": ("--target", "rtx"),
    "trt": ("--target", "trt"),
    "trt.plugin": ("--target", "trt", "--htdq", "plugin"),
    "trt8": ("--target", "trt8"),
    "trt8.plugin": ("--target", "trt8", "--htdq", "plugin"),
}

INT8 = {"down.conv1", "down.conv2", "linear", "up.conv1", "up.conv2"}
"""Its layers that every form quantizes."""


def write_forms(folder: Path) -> None:
    """Write `float.onnx` and one file for each of `FORMS`, for example `trt8.onnx`."""
    write_small_unet(folder / "float.onnx")
    stats = ("--stats", str(folder / "stats.npz"))
    for name, options in FORMS.items():
        sampling = () if (folder / "stats.npz").exists() else FAST
        output = ("-o", str(folder / f"{name}.onnx"))
        with contextlib.redirect_stdout(io.StringIO()):
            code = main([str(folder / "float.onnx"), *sampling, *stats, *options, *output])
        assert code == 0
