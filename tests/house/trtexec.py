"""Stands in for `trtexec --loadEngine`: ONNX Runtime on the file that the engine is built from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

ONNX_FILE = "model.w8a8.onnx"
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def main(arguments: list[str]) -> None:
    """Run one call, from raw files to a `.json` file, as the options of trtexec name them."""
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    files = dict(entry.split(":", 1) for entry in options.pop("loadInputs").split(","))
    shapes = dict(entry.split(":", 1) for entry in options.pop("shapes").split(","))
    output = Path(options.pop("exportOutput"))
    assert options.keys() == {"loadEngine"}, options
    session = ort.InferenceSession(ONNX_FILE, providers=["CPUExecutionProvider"])
    feeds = {
        value.name: np.fromfile(files.pop(value.name), DTYPES[value.type]).reshape(
            [int(extent) for extent in shapes.pop(value.name).split("x")]
        )
        for value in session.get_inputs()
    }
    assert not files, files
    assert not shapes, shapes
    entries = [
        {
            "name": value.name,
            "dimensions": "x".join(map(str, array.shape)),
            "values": array.astype(np.float32).ravel().tolist(),
        }
        for value, array in zip(session.get_outputs(), session.run(None, feeds), strict=True)
    ]
    output.write_text(json.dumps(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
