"""Calibration calls saved by Polygraphy (``--save-inputs``) as JSON."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qvd_trt.calibrators.sources.calls import (
    ConditionNumbers,
    Denoise,
    DenoiserCall,
    Wanted,
    every_trajectory,
)
from qvd_trt.calibrators.sources.fit_floats import fit_floats, is_bfloat16
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.atomic_files import not_a_file
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, check_inputs

_HOW_TO = "write it with polygraphy run --save-inputs, or polygraphy.json.save_json"


class PolygraphyJson:
    """A JSON list of feed dicts, or a folder with one file per call.

    Trajectories are told apart by their conditions, which must come back: where most calls have one
    of their own, an input varies along the trajectory, and all form one. A file is decoded whole,
    as Polygraphy does it: once to check and count its calls, and again to make them, so that no
    call is held in between.
    """

    def __init__(self, path: Path, signature: ModelSignature) -> None:
        """Decode and check everything once, before the model runs.

        Raises:
            UserError: a file is missing, damaged, empty, holds something else, or does not fit
                the model.
        """
        self._path = path
        self._signature = signature
        self._files = _list_files(path)
        conditions = ConditionNumbers(signature)
        numbers = [conditions.number(inputs) for inputs in self._feeds()]
        self._calls = len(numbers)
        self._conditions_tell = 2 * len(set(numbers)) <= len(numbers)

    def describe(self) -> str:
        """One line for the report."""
        return f"{self._path}, {self._calls} calls"

    def trajectories(self) -> None:
        """Unknown: the format does not name them."""
        return None

    def calls(self, wanted: Wanted = every_trajectory) -> int:
        """Number of feed dicts."""
        return self._calls

    def settings(self) -> Mapping[str, str]:
        """A digest of the files."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return {"--calib": f"{self._calls} calls, sha256:{digest.hexdigest()}"}

    def needs_predictions(self) -> bool:
        """Recorded calls depend on nothing."""
        return False

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        """Make every call once, in the order of the file.

        Raises:
            UserError: the file changed since it was opened and is wrong now.
        """
        conditions = ConditionNumbers(self._signature)
        steps: Counter[int] = Counter()
        for inputs in self._feeds():
            number = conditions.number(inputs) if self._conditions_tell else 0
            denoise(DenoiserCall(inputs, number, steps[number]))
            steps[number] += 1

    def _feeds(self) -> Iterator[dict[str, AnyArray]]:
        for file in self._files:
            for index, feed in enumerate(_decode(file)):
                arrays = feed_arrays(feed, f"{file.name}, call {index}")
                inputs = fit_floats(arrays, self._signature)
                check_inputs(inputs, self._signature, f"{file.name}, call {index}")
                yield inputs


def feed_arrays(feed: object, origin: str) -> dict[str, AnyArray]:
    """One feed dict as numpy arrays by input name.

    Raises:
        UserError: it is no dict of arrays.
    """
    if not isinstance(feed, Mapping):
        raise UserError(
            f"{origin}: found {type(feed).__name__}, expected a dict of one array per model input"
        )
    arrays: dict[str, AnyArray] = {}
    for name, value in feed.items():
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{origin}: {name!r} cannot be read as a numpy array ({error}); "
                "convert it with .cpu().numpy()"
            ) from error
        if array.dtype.kind not in "biuf" and not is_bfloat16(array.dtype):
            raise UserError(
                f"{origin}: {name!r} is {type(value).__name__} of dtype {array.dtype}, "
                "expected a numeric numpy array"
            )
        arrays[str(name)] = array
    return arrays


def _decode(path: Path) -> list[object]:
    from polygraphy.exception import PolygraphyException
    from polygraphy.json import from_json

    try:
        loaded: Any = from_json(path.read_text(encoding="utf-8"))
    except (PolygraphyException, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not a Polygraphy JSON file ({reason}); {_HOW_TO}") from error
    feeds = [loaded] if isinstance(loaded, dict) else loaded
    if not isinstance(feeds, list):
        raise UserError(
            f"{path} holds {type(loaded).__name__}, expected a list of feed dicts; {_HOW_TO}"
        )
    if not feeds:
        raise UserError(f"{path} holds an empty list; {_HOW_TO}")
    return feeds


def _list_files(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        files = tuple(sorted(path.glob("*.json"), key=lambda file: file.name))
        if not files:
            raise UserError(f"{path} holds no .json file; {_HOW_TO}")
        return files
    if not path.is_file():
        raise UserError(f"{path} {not_a_file(path)}; {_HOW_TO}")
    return (path,)
