"""Every command of the README that needs no GPU is run, in the README's order.

On the shipped example, or on stand-ins for the files that only a user has.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.markdown import blocks, steps
from tests.house.stand_ins import write_denoiser, write_prompts, write_recordings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
STEPS = steps(README)

MODULES = {f"qvd-{name}": f"qvd_trt.tools.cli.{name}" for name in ("export", "build", "validate")}

GPU = "runs an engine, which takes a GPU"
TRTEXEC = "needs TensorRT and a GPU; engine_build/test_readme.py holds it to what qvd-build prints"
INSTALL = "takes the network; test_documentation.py looks the extras up"

ONLY_PARSED = {
    "pip install": INSTALL,
    "pytest": "is what runs this test",
    "trtexec --onnx": TRTEXEC,
    "python -m qvd_trt.trt_plugins build": "needs nvcc and TensorRT",
    "qvd-build model.trt8.onnx --implicit": "needs TensorRT 8.6, and trtexec has no such build",
    "qvd-validate model.onnx model.w8a8.onnx --engine model.w8a8.engine --float-engine": GPU,
    "qvd-validate model.onnx model.w8a8.onnx --engine model.w8a8.engine --calib": GPU,
}
"""Beginnings of steps that are not run, and why."""

ADDED = {
    # TensorRT 10 need not be there to say how it would build.
    "qvd-build model.w8a8.onnx --shapes": "--print-trtexec --tensorrt-version 10",
    "qvd-build model.fp16.onnx -o": "--print-trtexec --tensorrt-version 10",
    # Sixteen clips take minutes.
    "python -m examples.pandigits.sample": "--steps 1 --clips 1",
}
"""Beginnings of steps that are run with something added, and what."""

SUMMARY_START = "quantized      w8a8"
DECIBELS = re.compile(r"\d+\.\d(?= dB)")
DECIBEL_TOLERANCE = 0.2
"""ONNX Runtime's kernels, and so the last bits of what it calibrates on, depend on the CPU."""


def on_the_example(step: str) -> bool:
    return re.search(r"\bexamples\b|\bout/", step) is not None


def only_parsed(step: str) -> bool:
    return step.startswith(tuple(ONLY_PARSED))


def run_shell(step: str, folder: Path, programs: Path) -> str:
    """Run a step as a reader would, with what is added to it; returns what it prints."""
    extra = [value for start, value in ADDED.items() if step.startswith(start)]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    command = " ".join([step, *extra])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def parse(step: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a step that is not run as far as its options go, on the files as they are then."""
    program, *arguments = shlex.split(step)
    if program in MODULES:
        command = importlib.import_module(MODULES[program])
        monkeypatch.chdir(folder)
        command.read_request(command.build_parser().parse_args(arguments))
    elif "qvd_trt.trt_plugins" in arguments:
        plugins = importlib.import_module("qvd_trt.trt_plugins.__main__")
        plugins.build_parser().parse_args(arguments[2:])


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with this checkout's commands, this Python, and a stand-in of trtexec."""
    folder = tmp_path / "programs"
    folder.mkdir()
    targets = {
        **{name: f"-m {module}" for name, module in MODULES.items()},
        "python": "",
        "trtexec": shlex.quote(str(Path(__file__).with_name("trtexec.py"))),
    }
    for name, target in targets.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {target} "$@"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.parametrize("start", [*ONLY_PARSED, *ADDED])
def test_exception_is_still_in_the_readme(start: str) -> None:
    steps = [step for step in STEPS if step.startswith(start)]
    assert steps
    assert start in ONLY_PARSED or not any(map(only_parsed, steps))


def test_both_halves_hold_commands() -> None:
    """Negative control: the steps are found, and neither half of them is only parsed."""
    for half in (True, False):
        run = [step for step in STEPS if on_the_example(step) is half and not only_parsed(step)]
        assert sum(step.startswith("qvd-") for step in run) >= 4


def test_users_commands(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    write_denoiser(folder / "model.onnx", "sample", channels=4, patch=2)
    write_denoiser(folder / "wan.onnx", "hidden_states", channels=16, patch=8)
    write_recordings(folder / "recorded", seed=1)
    write_recordings(folder / "heldout", seed=2)
    for step in STEPS:
        if on_the_example(step):
            continue
        # The model's free sizes come from --shapes, or from the latent among the prompts.
        sized = {} if "--shapes" in step else {"sample": (1, 4, 2, 8, 8)}
        write_prompts(folder / "prompts.npz", **sized)
        if only_parsed(step):
            parse(step, folder, monkeypatch)
        else:
            run_shell(step, folder, programs)
    assert len(list((folder / "outputs").iterdir())) == 8
    assert {path.name for path in folder.glob("*.onnx")} == {
        *("model.onnx", "wan.onnx", "model.w8a8.onnx", "wan.w8a8.onnx", "model.w6a6.onnx"),
        *("edited.onnx", "model.trt8.onnx", "model.fp16.onnx"),
    }


@pytest.mark.slow
def test_examples_commands(tmp_path: Path, programs: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "examples", folder / "examples")
    printed = {
        step: run_shell(step, folder, programs)
        for step in STEPS
        if on_the_example(step) and not only_parsed(step)
    }
    (shown,) = (block for block in blocks(README, {"text"}) if block.startswith(SUMMARY_START))
    (first,) = (out for step, out in printed.items() if "--calib" in step and "-export" in step)
    lines = first[: first.index("\ntime ") + 1]
    assert DECIBELS.sub("N", lines) == DECIBELS.sub("N", shown)
    assert list(map(float, DECIBELS.findall(lines))) == pytest.approx(
        list(map(float, DECIBELS.findall(shown))), abs=DECIBEL_TOLERANCE
    )
