"""The kernel's own search, compiled as plain C++, against numpy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.trt_plugins.oracle import (
    DTYPES,
    SIZES,
    Float32Array,
    Table,
    adversarial_values,
    all_values,
    bits_of,
    extreme_table,
    skewed_table,
    tied_table,
)

LookUp = Callable[[Table, Float32Array], Float32Array]


@pytest.fixture
def look_up(lookup_driver: Path, tmp_path: Path) -> LookUp:
    def run(table: Table, x: Float32Array) -> Float32Array:
        x.tofile(tmp_path / "x.bin")
        files = [*table.write(tmp_path), tmp_path / "x.bin", tmp_path / "y.bin"]
        subprocess.run([lookup_driver, *files], check=True)
        return np.fromfile(tmp_path / "y.bin", np.float32)

    return run


@pytest.mark.parametrize("size", SIZES)
def test_adversarial_values(look_up: LookUp, size: int) -> None:
    table = skewed_table(size)
    x = adversarial_values(table)
    np.testing.assert_array_equal(bits_of(look_up(table, x)), bits_of(table(x)))


def test_extreme_thresholds(look_up: LookUp) -> None:
    table = extreme_table()
    x = adversarial_values(table)
    np.testing.assert_array_equal(bits_of(look_up(table, x)), bits_of(table(x)))


def test_every_number_of_levels(look_up: LookUp) -> None:
    for size in range(2, 257):
        for table in (skewed_table(size), tied_table(size)):
            x = adversarial_values(table, seed=size)
            np.testing.assert_array_equal(look_up(table, x), table(x), err_msg=f"{size} levels")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_with_equal_ends_are_constant(look_up: LookUp, size: int, dtype: str) -> None:
    """What the kernel's table of all 16-bit numbers is made by: a tile is 64 numbers."""
    table = skewed_table(size)
    y = look_up(table, all_values(DTYPES[dtype]).astype(np.float32)).reshape(-1, 64)
    has_equal_ends = y[:, 0] == y[:, -1]
    assert (y[has_equal_ends] == y[has_equal_ends, :1]).all()
    assert 0 < (~has_equal_ends).sum() < size + 2


@pytest.mark.parametrize("size", [4, 16, 200, 256])
def test_all_half_precision_values(look_up: LookUp, size: int) -> None:
    table = skewed_table(size)
    half = all_values(np.float16)
    y = look_up(table, half.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(bits_of(y), bits_of(table(half)))


def test_nan_gets_the_last_level_and_a_threshold_the_lower(look_up: LookUp) -> None:
    table = Table(np.array([-1, 0, 1], np.float32), np.array([-0.5, 0.5], np.float32))
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.5, 0.5, -0.0], np.float32)
    assert look_up(table, x).tolist() == [1, 1, 1, -1, -1, 0, 0]


def test_values_tell_the_two_sides_apart() -> None:
    """Negative control: the other convention gives another answer on these values."""
    table = skewed_table(16)
    x = adversarial_values(table)
    right = table.levels[np.searchsorted(table.thresholds, x, side="right")]
    assert (right != table(x)).sum() >= table.thresholds.size
    assert np.isnan(x).sum() > 10


@pytest.mark.parametrize(
    ("levels", "thresholds", "message"),
    [
        ([], [], "'levels' is missing or empty"),
        ([1], [], "'levels' must have 2 to 256 values, not 1"),
        (range(257), range(256), "'levels' must have 2 to 256 values, not 257"),
        ([1, 2], [], "'thresholds' is missing or empty"),
        ([1, 2, 3], [1, 2, 3], "'thresholds' must have one value fewer than 'levels' (2), not 3"),
        ([1, np.nan], [1], "'levels' is not finite at index 1"),
        ([1, 2, 3], [1, np.inf], "'thresholds' is not finite at index 1"),
        ([1, 0], [1], "'levels' does not ascend at index 1"),
        ([1, 2, 3], [2, 1], "'thresholds' does not ascend at index 1"),
    ],
)
def test_bad_attributes_are_named(
    lookup_driver: Path,
    tmp_path: Path,
    levels: npt.ArrayLike,
    thresholds: npt.ArrayLike,
    message: str,
) -> None:
    table = Table(np.array(levels, np.float32), np.array(thresholds, np.float32))
    command = [lookup_driver, *table.write(tmp_path), tmp_path / "levels.bin", tmp_path / "y"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, f"attribute {message}\n")
