"""Calibration calls from a user's Python script with a ``load_data()`` function.

The convention is that of Polygraphy's ``--data-loader-script``: ``load_data()`` takes no argument
and returns or yields feed dicts, one array per graph input, by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from qvd_trt.calibrators.sources.calls import Denoise, DenoiserCall, Wanted, every_trajectory
from qvd_trt.calibrators.sources.fit_floats import fit_floats
from qvd_trt.calibrators.sources.polygraphy_json import feed_arrays
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.atomic_files import not_a_file
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, check_inputs

FUNCTION = "load_data"


class LoaderScript:
    """The feed dicts of ``load_data()``, taken one after the other.

    One feed dict is one call. When ``load_data()`` gives feed dicts they all form one trajectory;
    when it gives lists (or tuples) of feed dicts, each list is one trajectory. How many there
    are is not known before the script has run.
    """

    def __init__(self, path: Path, signature: ModelSignature) -> None:
        """Run the script's top level and look up ``load_data``.

        Raises:
            UserError: the script is missing, fails, or has no such function.
        """
        self._path = path
        self._signature = signature
        self._load = _find_function(path)

    def describe(self) -> str:
        """One line for the report."""
        return f"{FUNCTION}() of {self._path}"

    def trajectories(self) -> None:
        """Unknown: the script is asked for one feed dict at a time."""
        return None

    def calls(self, wanted: Wanted = every_trajectory) -> None:
        """Unknown: the script is asked for one feed dict at a time."""
        return None

    def settings(self) -> Mapping[str, str]:
        """A digest of the script; what it reads is its own."""
        return {"--calib": f"script sha256:{hashlib.sha256(self._path.read_bytes()).hexdigest()}"}

    def needs_predictions(self) -> bool:
        """The script is not told any prediction."""
        return False

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        """Make every call once, in the order of the script.

        Raises:
            UserError: the script fails or gives nothing, or a feed dict does not fit the model.
        """
        listed: bool | None = None
        for index, item in enumerate(self._items()):
            is_list = isinstance(item, (list, tuple))
            if listed is not None and listed != is_list:
                raise UserError(
                    f"{self._path.name}: {FUNCTION}() mixes feed dicts and lists of feed dicts; "
                    "give dicts for one trajectory, or one list per trajectory"
                )
            listed = is_list
            if isinstance(item, (list, tuple)):
                for step, feed in enumerate(item):
                    origin = f"{self._path.name}, trajectory {index}, step {step}"
                    denoise(DenoiserCall(self._inputs(feed, origin), index, step))
            else:
                inputs = self._inputs(item, f"{self._path.name}, item {index}")
                denoise(DenoiserCall(inputs, 0, index))
        if listed is None:
            raise UserError(f"{self._path.name}: {FUNCTION}() gave no feed dict")

    def _inputs(self, feed: object, origin: str) -> dict[str, AnyArray]:
        inputs = fit_floats(feed_arrays(feed, origin), self._signature)
        check_inputs(inputs, self._signature, origin)
        return inputs

    def _items(self) -> Iterator[object]:
        with _users_code(self._path):
            loaded: object = self._load()
        if isinstance(loaded, Mapping) or not isinstance(loaded, Iterable):
            raise UserError(
                f"{self._path.name}: {FUNCTION}() returned {type(loaded).__name__}; "
                "return a list of feed dicts, or yield them"
            )
        with _users_code(self._path):
            iterator = iter(loaded)
        while True:
            with _users_code(self._path):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def _find_function(path: Path) -> Callable[[], Any]:
    if not path.is_file():
        raise UserError(f"{path} {not_a_file(path)}; give a Python script with {FUNCTION}()")
    module = _import_script(path)
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise UserError(
            f"{path.name} has no function {FUNCTION}(); define one that yields feed dicts "
            "{input_name: numpy_array}"
        )
    return function  # type: ignore[no-any-return]


def _import_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_loader_script_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported; give a Python script ending in .py")
    module = importlib.util.module_from_spec(spec)
    with _users_code(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _users_code(path: Path) -> Iterator[None]:
    """Let the script import its neighbours, and report its exceptions by line."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    except (Exception, SystemExit) as error:
        line = _failing_line(error, path)
        detail = " ".join(str(error).split())
        what = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
        raise UserError(f"{path.name}, line {line}: {what}; mend the script") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _failing_line(error: BaseException, path: Path) -> int | str:
    script = path.resolve()
    if isinstance(error, SyntaxError) and error.filename == str(script):
        return error.lineno or "unknown"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == script and frame.lineno is not None
    ]
    return lines[-1] if lines else "unknown"
