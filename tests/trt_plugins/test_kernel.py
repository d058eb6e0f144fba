"""The kernel on a GPU against numpy, bit for bit."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.trt_plugins.conftest import SOURCES
from tests.trt_plugins.oracle import (
    DTYPES,
    SIZES,
    AnyArray,
    Table,
    adversarial_values,
    all_values,
    bits_of,
    extreme_table,
    skewed_table,
    tied_table,
)

WRAPPER_VARIABLE = "QVD_TRT_KERNEL_WRAPPER"
"""A command to run the kernel under, for example ``compute-sanitizer --error-exitcode 9``."""
GUARD = 64
POISON = 0xA5
UNSUPPORTED = 3
MANY = 25_000_003
"""Values that every GPU looks up by the method for many: more than 2**17 for each of 160 SMs."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One launch: the values, where the buffers start, and how it is launched."""

    table: Table
    x: AnyArray
    offset: int = 0
    mode: str = "stream"


def run_cases(driver: Path, folder: Path, dtype: str, cases: list[Case]) -> list[AnyArray]:
    """What the kernel gives, after checking that it wrote nothing else."""
    lines = []
    for number, case in enumerate(cases):
        place = folder / str(number)
        place.mkdir()
        case.x.tofile(place / "x.bin")
        files = [*case.table.write(place), place / "x.bin", place / "y.bin"]
        lines.append(" ".join([dtype, *map(str, files), str(case.offset), case.mode]))
    (folder / "cases.txt").write_text("\n".join(lines) + "\n")
    wrapper = shlex.split(os.environ.get(WRAPPER_VARIABLE, ""))
    done = subprocess.run([*wrapper, driver, folder / "cases.txt"], check=False)
    if done.returncode == UNSUPPORTED:
        pytest.skip("needs a GPU with 130 KB of shared memory per block")
    done.check_returncode()
    results = []
    for number, case in enumerate(cases):
        y = np.fromfile(folder / str(number) / "y.bin", case.x.dtype)
        assert y.size == case.x.size + 2 * GUARD
        guards = np.concatenate([y[:GUARD], y[-GUARD:]])
        assert (guards.view(np.uint8) == POISON).all()
        results.append(y[GUARD:-GUARD])
    return results


def check_cases(driver: Path, folder: Path, dtype: str, cases: list[Case]) -> None:
    for case, y in zip(cases, run_cases(driver, folder, dtype, cases), strict=True):
        np.testing.assert_array_equal(
            bits_of(y),
            bits_of(case.table(case.x)),
            err_msg=f"{case.table.levels.size} levels, {case.x.size} values, "
            f"offset {case.offset}, {case.mode}",
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_values(kernel_driver: Path, tmp_path: Path, dtype: str) -> None:
    tables = [*map(skewed_table, SIZES), extreme_table()]
    with np.errstate(over="ignore", invalid="ignore"):
        values = [adversarial_values(table).astype(DTYPES[dtype]) for table in tables]
    cases = [Case(table, x) for table, x in zip(tables, values, strict=True)]
    if dtype != "fp32":
        cases += [Case(table, all_values(DTYPES[dtype])) for table in tables]
    check_cases(kernel_driver, tmp_path, dtype, cases)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_lookup_of_hard_values(kernel_driver: Path, tmp_path: Path, dtype: str) -> None:
    tables = [*map(skewed_table, SIZES), *map(tied_table, SIZES), extreme_table()]
    cases = [Case(table, all_values(DTYPES[dtype]), mode="lookup") for table in tables]
    check_cases(kernel_driver, tmp_path, dtype, cases)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_lookup_of_sizes(kernel_driver: Path, tmp_path: Path, dtype: str) -> None:
    generator = np.random.default_rng(2)
    cases = []
    for count in (1, 7, 8, 9, 1023, 8191, 8193, 100_003, 3_000_001):
        x = generator.normal(0, 4, count).astype(DTYPES[dtype])
        cases += [Case(skewed_table(200), x, offset, "lookup") for offset in (0, 8)]
    check_cases(kernel_driver, tmp_path, dtype, cases)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_values(kernel_driver: Path, tmp_path: Path, dtype: str) -> None:
    """The method that the launcher chooses: offset 8 keeps 16-byte alignment, 1 and 3 do not."""
    values = all_values(DTYPES[dtype]) if dtype != "fp32" else adversarial_values(extreme_table())
    place = np.random.default_rng(3).integers(0, values.size, MANY, np.int32)
    cases = [
        Case(extreme_table(), values[place]),
        Case(skewed_table(256), values[place], 8),
        Case(skewed_table(16), values[place], 1),
        Case(skewed_table(100), values[place], 3, "inplace"),
        Case(skewed_table(256), values[place], mode="inplace"),
        Case(skewed_table(17), values[place], mode="graph"),
    ]
    for number, case in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        (y,) = run_cases(kernel_driver, folder, dtype, [case])
        shutil.rmtree(folder)
        expected = bits_of(case.table(values))[place]
        np.testing.assert_array_equal(bits_of(y), expected, err_msg=f"case {number}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_alignments_and_launches(kernel_driver: Path, tmp_path: Path, dtype: str) -> None:
    generator = np.random.default_rng(1)
    table = skewed_table(200)
    cases = []
    for count in (0, 1, 3, 7, 8, 9, 31, 255, 256, 257, 2047, 2049, 100_003, 5_000_001):
        x = generator.normal(0, 4, count).astype(DTYPES[dtype])
        cases += [Case(table, x, offset) for offset in (0, 1, 2, 5)]
        cases += [Case(table, x, mode="inplace"), Case(table, x, offset=3, mode="inplace")]
        if count:
            cases.append(Case(table, x, mode="graph"))
    check_cases(kernel_driver, tmp_path, dtype, cases)


@pytest.mark.gpu
def test_comparison_sees_a_wrong_level(kernel_driver: Path, tmp_path: Path) -> None:
    """Negative control: one changed level is seen."""
    table = skewed_table(16)
    x = np.linspace(-1, 40, 1000, dtype=np.float32)
    (y,) = run_cases(kernel_driver, tmp_path, "fp32", [Case(table, x)])
    table.levels[7] = np.nextafter(table.levels[7], np.float32(np.inf))
    assert (bits_of(y) != bits_of(table(x))).any()


def test_kernel_compiles_for_every_generation(nvcc: Path, tmp_path: Path) -> None:
    listing = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"compute_(\d+)", listing.stdout))
    wanted = [arch for arch in ("75", "80", "86", "89", "90", "100", "120") if arch in known]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in wanted]
    flags = ["-std=c++17", "-O3", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    flags += ["-Xptxas=-warn-spills,-warn-lmem-usage,-Werror"]
    command = [str(nvcc), *flags, *targets, f"-I{SOURCES / 'src'}"]
    command += ["-c", str(SOURCES / "src" / "htdq" / "kernel.cu"), "-o", str(tmp_path / "kernel.o")]
    subprocess.run(command, check=True)
    assert wanted
