"""HTDQ in numpy, and the codebooks and values that are hard to get right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
DTYPES: dict[str, npt.DTypeLike] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}
SIZES = (2, 3, 4, 5, 16, 17, 100, 255, 256)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A codebook."""

    levels: Float32Array
    thresholds: Float32Array

    def __call__(self, x: AnyArray) -> AnyArray:
        """The reference, in and out of the array's own type."""
        index = np.searchsorted(self.thresholds, x.astype(np.float32), side="left")
        return self.levels[index].astype(x.dtype)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write raw levels and thresholds."""
        paths = folder / "levels.bin", folder / "thresholds.bin"
        self.levels.tofile(paths[0])
        self.thresholds.tofile(paths[1])
        return paths


def skewed_table(size: int) -> Table:
    """Levels as of a SiLU: from -0.28 up a long tail, one threshold exactly 0."""
    tail = np.geomspace(1e-4, 40.0, size, dtype=np.float32)
    levels = np.sort(tail - np.float32(0.28))
    thresholds = (levels[:-1] + levels[1:]) / np.float32(2)
    thresholds[np.abs(thresholds).argmin()] = 0.0
    return Table(levels, np.sort(thresholds))


def tied_table(size: int) -> Table:
    """Every other threshold equals its neighbour, at steps that 16-bit types have."""
    thresholds = (np.arange(size - 1) // 2 - size // 4).astype(np.float32) / np.float32(8)
    return Table(np.linspace(-3.7, 5.3, size, dtype=np.float32), thresholds)


def extreme_table() -> Table:
    """Subnormal and huge numbers, equal thresholds, negative zero."""
    top = np.finfo(np.float32).max
    tiny = np.finfo(np.float32).smallest_subnormal
    thresholds = np.array([-top, -1.0, -tiny, -0.0, tiny, 1.0, 1.0, top], np.float32)
    return Table(np.linspace(-4.3, 7.1, thresholds.size + 1, dtype=np.float32), thresholds)


def adversarial_values(table: Table, seed: int = 0) -> Float32Array:
    """Thresholds, their neighbours, signed zeros, infinities, NaNs, subnormals, any bits."""
    infinity = np.float32(np.inf)
    with np.errstate(over="ignore"):
        near = [np.nextafter(table.thresholds, way) for way in (-infinity, infinity)]
    bits = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x00000001, 0x80000001], np.uint32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 3e38, -3e38, 1e-38], np.float32)
    random = np.random.default_rng(seed).integers(0, 2**32, 5000, np.uint32).view(np.float32)
    return np.concatenate([table.thresholds, *near, special, bits.view(np.float32), random])


def all_values(dtype: npt.DTypeLike) -> AnyArray:
    """All 65536 numbers of a 16-bit type."""
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def bits_of(values: AnyArray) -> AnyArray:
    """The values' bits, so that comparisons see the sign of zero."""
    return values.view(np.uint32 if values.dtype.itemsize == 4 else np.uint16)
