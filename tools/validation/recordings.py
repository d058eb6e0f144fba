"""Files of calls and predictions for other tools: Polygraphy JSON, and raw arrays for trtexec."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.atomic_files import require_writable, written_together
from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine.array_cast import cast_exactly
from qvd_trt.tools.validation.report import ENGINE, FLOAT, QDQ

LOAD_INPUTS_FILE = "load_inputs.txt"


@dataclass(frozen=True, slots=True)
class RecordingPaths:
    """Where to write; None writes nothing.

    Attributes:
        inputs: Polygraphy JSON list of feed dicts, for ``polygraphy run --load-inputs``.
        outputs: Polygraphy ``RunResults`` of the runners float, qdq and engine, for
            ``--load-outputs``.
        raw: Folder of one ``.bin`` per input and call, for ``trtexec --loadInputs``.
        raw_int32: Whether int64 inputs become int32 there, as TensorRT 8.6 takes them.
    """

    inputs: Path | None = None
    outputs: Path | None = None
    raw: Path | None = None
    raw_int32: bool = False

    def check_raw(self) -> None:
        """Refuse a place for raw arrays that is no new or empty folder.

        Raises:
            UserError: naming it.
        """
        if self.raw is None:
            return
        if self.raw.exists() and not self.raw.is_dir():
            raise UserError(f"--save-raw: {self.raw} is no folder; give a new one")
        if self.raw.exists() and any(self.raw.iterdir()):
            raise UserError(f"--save-raw: {self.raw} is not empty; give a new folder")
        require_writable(self.raw)


class Recorder:
    """Writes call by call; JSON files appear whole when the ``with`` block ends without error."""

    def __init__(self, paths: RecordingPaths, output: str) -> None:
        """Check the paths.

        Args:
            paths: Where to write.
            output: Name of the prediction.

        Raises:
            UserError: the folder for raw arrays is no folder, or not empty.
        """
        paths.check_raw()
        self._paths = paths
        self._output = output
        self._spools: dict[str, IO[str]] = {}
        self._calls = 0

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for spool in self._spools.values():
                spool.close()

    def record(self, call: DenoiserCall, predictions: Mapping[str, AnyArray]) -> None:
        """Take one call and the models' predictions, by model name."""
        if self._paths.inputs is not None:
            self._spool("inputs", dict(call.inputs))
        if self._paths.outputs is not None:
            from polygraphy.comparator import IterationResult

            for runner in (FLOAT, QDQ, ENGINE):
                if runner in predictions:
                    result = IterationResult({self._output: predictions[runner]}, None, runner)
                    self._spool(runner, result)
        if self._paths.raw is not None:
            self._write_raw(self._paths.raw, call)
        self._calls += 1

    def _spool(self, name: str, item: Any) -> None:
        from polygraphy.json import to_json

        if name not in self._spools:
            # On disk, so that memory does not grow with the number of calls.
            file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
            self._spools[name] = file
        spool = self._spools[name]
        spool.write(",\n" if spool.tell() else "")
        spool.write(to_json(item))

    def _finish(self) -> None:
        if (path := self._paths.inputs) is not None:
            with written_together(path) as staged, staged.open("w", encoding="utf-8") as file:
                self._copy_list("inputs", file)
        if (path := self._paths.outputs) is not None:
            with written_together(path) as staged, staged.open("w", encoding="utf-8") as file:
                file.write('{"lst": [')
                runners = [name for name in (FLOAT, QDQ, ENGINE) if name in self._spools]
                for index, name in enumerate(runners):
                    file.write(f"{', ' if index else ''}[{json.dumps(name)}, ")
                    self._copy_list(name, file)
                    file.write("]")
                file.write('], "polygraphy_class": "RunResults"}\n')

    def _copy_list(self, name: str, file: IO[str]) -> None:
        file.write("[")
        if name in self._spools:
            self._spools[name].seek(0)
            while block := self._spools[name].read(1 << 20):
                file.write(block)
        file.write("]")

    def _write_raw(self, folder: Path, call: DenoiserCall) -> None:
        target = folder / f"call_{self._calls:04d}"
        target.mkdir(parents=True)
        files, shapes = [], []
        for position, (name, array) in enumerate(call.inputs.items()):
            if self._paths.raw_int32 and array.dtype == np.int64:
                array = cast_exactly(array, "int32", f"input {name!r}")
            # The position tells apart names that differ in characters a file name may not have.
            file = target / f"{position}_{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.bin"
            np.ascontiguousarray(array).tofile(file)
            files.append(f"{name}:{file}")
            if array.ndim:
                shapes.append(f"{name}:{'x'.join(map(str, array.shape))}")
        with (folder / LOAD_INPUTS_FILE).open("a", encoding="utf-8") as lines:
            lines.write(f"--loadInputs={','.join(files)} --shapes={','.join(shapes)}\n")
