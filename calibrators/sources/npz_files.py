"""Calibration calls recorded in ``.npz`` files: one file is one denoising trajectory."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qvd_trt.calibrators.sources.calls import (
    Denoise,
    DenoiserCall,
    Wanted,
    every_trajectory,
)
from qvd_trt.calibrators.sources.fit_floats import fit_floats
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.atomic_files import not_a_file
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, check_inputs

READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    AttributeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What numpy and zipfile raise on damaged files, depending on where the damage is."""


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What an ``.npz`` file says about one of its arrays, without its data."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """Size of the array's data."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path) -> dict[str, AnyArray]:
    """All arrays of one ``.npz`` file, by name.

    Raises:
        UserError: the file is missing or damaged, holds no array, or holds Python objects.
    """
    read_headers(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except READ_ERRORS as error:
        raise _damaged(path, error) from error


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Shape and dtype of every array of one ``.npz`` file, without reading the arrays.

    Raises:
        UserError: the file is missing or damaged, holds no array, or holds Python objects.
    """
    if not path.is_file():
        raise UserError(f"{path} {not_a_file(path)}; give an .npz file of input arrays")
    headers: dict[str, ArrayHeader] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    header = _read_header(file)  # type: ignore[arg-type]
                if not header.dtype.hasobject and header.bytes > entry.file_size:
                    # Else reading it would ask for that much memory first.
                    raise ValueError(
                        f"{entry.filename} claims {header.bytes} bytes and has {entry.file_size}"
                    )
                headers[entry.filename.removesuffix(".npy")] = header
    except READ_ERRORS as error:
        raise _damaged(path, error) from error
    if not headers:
        raise UserError(f"{path} holds no array; write it with numpy.savez(path, input_name=array)")
    for name, header in headers.items():
        if header.dtype.hasobject:
            raise UserError(
                f"{path}: {name!r} is an array of Python objects, which is never loaded; "
                "convert it to a numeric dtype before saving"
            )
    return headers


class NpzFiles:
    """One ``.npz`` file, or a folder of them sorted by name; each file is one trajectory.

    An array whose rank is one more than its input's holds one row per denoising step on its
    leading axis; an array of its input's own rank stays the same over the steps. A file without
    any stacked array is a single call. Files are read one at a time.
    """

    def __init__(self, path: Path, signature: ModelSignature) -> None:
        """Read all headers, so that wrong files are refused before the model runs.

        Raises:
            UserError: a file is missing, damaged, empty or does not fit the model.
        """
        self._path = path
        self._signature = signature
        self._files = _list_files(path)
        self._calls: list[int] = []
        for file in self._files:
            headers = read_headers(file)
            steps = count_steps(
                {name: header.shape for name, header in headers.items()}, signature, file.name
            )
            zeros = {name: np.zeros((), header.dtype) for name, header in headers.items()}
            stand_ins = {
                name: np.broadcast_to(zero, headers[name].shape)
                for name, zero in fit_floats(zeros, signature).items()
            }
            check_inputs(_row(stand_ins, signature, 0), signature, file.name)
            self._calls.append(steps or 1)

    def describe(self) -> str:
        """One line for the report."""
        files = "1 file" if len(self._files) == 1 else f"{len(self._files)} files"
        return f"{files} of {self._path}, {sum(self._calls)} calls"

    def trajectories(self) -> int:
        """Number of files."""
        return len(self._files)

    def calls(self, wanted: Wanted = every_trajectory) -> int:
        """Number of denoising steps in the files wanted."""
        return sum(calls for number, calls in enumerate(self._calls) if wanted(number))

    def settings(self) -> Mapping[str, str]:
        """A digest of the checksums in the files, whose data are not read."""
        digest = hashlib.sha256()
        for file in self._files:
            try:
                with zipfile.ZipFile(file) as archive:
                    parts = [(part.filename, part.CRC) for part in archive.infolist()]
            except READ_ERRORS as error:
                raise _damaged(file, error) from error
            digest.update(repr(parts).encode())
        return {"--calib": f"{len(self._files)} files, sha256:{digest.hexdigest()}"}

    def needs_predictions(self) -> bool:
        """Recorded calls depend on nothing."""
        return False

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        """Make every call once, file by file; files that are not wanted are not read.

        Raises:
            UserError: a file cannot be read or a step holds NaN or Inf.
        """
        for trajectory, file in enumerate(self._files):
            if not wanted(trajectory):
                continue
            for step, inputs in enumerate(self._rows(file)):
                denoise(DenoiserCall(inputs, trajectory, step))

    def _rows(self, file: Path) -> Iterator[dict[str, AnyArray]]:
        arrays = read_npz(file)
        shapes = {name: array.shape for name, array in arrays.items()}
        steps = count_steps(shapes, self._signature, file.name)
        for step in range(steps or 1):
            inputs = fit_floats(_row(arrays, self._signature, step), self._signature)
            origin = file.name if steps is None else f"{file.name}, step {step}"
            check_inputs(inputs, self._signature, origin)
            yield inputs


def count_steps(
    shapes: Mapping[str, tuple[int, ...]], signature: ModelSignature, origin: str
) -> int | None:
    """Extent of the step axis of one trajectory's arrays, or None when no array is stacked.

    Raises:
        UserError: an array has neither its input's rank nor one more, two stacked arrays have
            different numbers of steps, or there is no step at all.
    """
    first: tuple[str, int] | None = None
    for spec in signature.inputs:
        if (shape := shapes.get(spec.name)) is None:
            continue
        extra_axes = len(shape) - len(spec.shape)
        if extra_axes not in (0, 1):
            wanted = ", ".join(map(str, spec.shape))
            raise UserError(
                f"{origin}: {spec.name!r} has shape {list(shape)}, the model takes [{wanted}] per "
                f"step; save it so, or with a leading step axis"
            )
        if extra_axes == 0:
            continue
        if shape[0] == 0:
            raise UserError(f"{origin}: {spec.name!r} has no steps (shape {list(shape)})")
        if first is None:
            first = (spec.name, shape[0])
        elif first[1] != shape[0]:
            raise UserError(
                f"{origin}: {spec.name!r} has {shape[0]} steps but {first[0]!r} has {first[1]}; "
                "all stacked arrays need the same leading extent"
            )
    return first[1] if first else None


def _row(
    arrays: Mapping[str, AnyArray], signature: ModelSignature, step: int
) -> dict[str, AnyArray]:
    ranks = {spec.name: len(spec.shape) for spec in signature.inputs}
    return {
        name: np.asarray(array[step]) if array.ndim == ranks.get(name, array.ndim) + 1 else array
        for name, array in arrays.items()
    }


def _list_files(path: Path) -> tuple[Path, ...]:
    if not path.is_dir():
        return (path,)
    files = tuple(sorted(path.glob("*.npz"), key=lambda file: file.name))
    if not files:
        raise UserError(f"{path} holds no .npz file; save one file of input arrays per trajectory")
    return files


def _read_header(file: BinaryIO) -> ArrayHeader:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return ArrayHeader(shape, dtype)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path} is not a complete .npz file ({reason}); save it again")
