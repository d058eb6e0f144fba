"""Predictions that an engine made elsewhere, read from what trtexec or Polygraphy wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.atomic_files import not_a_file
from qvd_trt.export.errors import UserError
from qvd_trt.tools.validation.report import ENGINE, as_float32

_KINDS = "give files of trtexec --exportOutput, one per call, or of polygraphy run --save-outputs"


class RecordedOutputs:
    """The outputs in the order of the calls; stands for the engine that made them.

    Files are decoded one at a time: once to count their outputs, and again to give them.
    """

    def __init__(self, files: Sequence[Path], output: str) -> None:
        """Read and count all outputs.

        Args:
            files: trtexec or Polygraphy JSON files in call order, or folders of them, where
                numbers in the names count: ``out_2.json`` comes before ``out_10.json``.
            output: Name of the prediction.

        Raises:
            UserError: a file is missing, is no such JSON, or lacks that output.
        """
        self._files = [
            file
            for path in files
            for file in (sorted(path.glob("*.json"), key=_by_number) if path.is_dir() else [path])
        ]
        self._output = output
        self.count = sum(1 for _ in self._read())
        self._outputs = self._read()
        self._given = 0

    def require_calls(self, calls: int) -> None:
        """There must be one output per call.

        Raises:
            UserError: there are more or fewer.
        """
        if self.count != calls:
            raise UserError(
                f"--engine-outputs hold {self.count} outputs for {calls} calls; give one per "
                "call, in the order of the calls (--save-inputs writes the calls)"
            )

    def __call__(self, call: DenoiserCall) -> Float32Array:
        """The next output, float32; the call itself is not looked at.

        Raises:
            UserError: there is none left.
        """
        self._given += 1
        output = next(self._outputs, None)
        if output is None:
            self.require_calls(self._given)
            raise UserError("--engine-outputs changed while they were read; try again")
        return as_float32(output)

    def _read(self) -> Iterator[AnyArray]:
        for file in self._files:
            for outputs in _decode(file):
                if self._output not in outputs:
                    raise UserError(
                        f"{file} has no output {self._output!r}, which the QDQ model returns; it "
                        f"has {sorted(outputs)}"
                    )
                yield outputs[self._output]


def _by_number(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _decode(file: Path) -> Iterator[dict[str, AnyArray]]:
    if not file.is_file():
        raise UserError(f"{file} {not_a_file(file)}; {_KINDS}")
    try:
        text = file.read_text(encoding="utf-8")
        data: Any = json.loads(text)
    except json.JSONDecodeError as error:
        if re.search(r"[\[,]\s*-?(nan|inf)\b", text):
            raise UserError(f"{file} holds NaN or Inf; the engine overflowed") from error
        raise UserError(f"{file} is no complete JSON file ({error}); {_KINDS}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no JSON file; {_KINDS}") from error
    if isinstance(data, dict) and data.get("polygraphy_class") == "RunResults":
        yield from _polygraphy(file, text)
    elif isinstance(data, list) and all(isinstance(entry, dict) for entry in data):
        yield dict(_trtexec_tensor(file, entry) for entry in data)
    else:
        raise UserError(f"{file} holds no outputs; {_KINDS}")


def _trtexec_tensor(file: Path, entry: dict[str, Any]) -> tuple[str, AnyArray]:
    try:
        name, dimensions = str(entry["name"]), str(entry["dimensions"])
        shape = tuple(int(extent) for extent in dimensions.split("x") if extent)
        return name, np.array(entry["values"], np.float32).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: an output lacks its name, its dimensions or as many values as they say "
            f"({error}); {_KINDS}"
        ) from error


def _polygraphy(file: Path, text: str) -> Iterator[dict[str, AnyArray]]:
    from polygraphy.comparator import RunResults
    from polygraphy.exception import PolygraphyException
    from polygraphy.json import from_json

    try:
        results: RunResults = from_json(text)
        runners = list(results.keys())
    except (PolygraphyException, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); {_KINDS}") from error
    chosen = runners if len(runners) == 1 else [name for name in runners if name == ENGINE]
    if len(chosen) != 1:
        raise UserError(
            f"{file} holds the outputs of {len(runners)} runners, {runners}, and none is the "
            "engine (--save-outputs of qvd-validate writes references); save the engine's alone"
        )
    for iteration in results[chosen[0]]:
        yield {name: np.asarray(array) for name, array in iteration.items()}
