"""One build in a process of its own.

``python -m qvd_trt.tools.engine.compile_process PLAN ANSWER PARENT`` is the child: it reads a
pickled ``BuildPlan``, writes a pickled ``CompileAnswer``, and ends when the process PARENT does. A
failure inside of TensorRT may end it; no answer is written then. The parent turns what went wrong
into one line.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine.build_plan import BuildPlan
from qvd_trt.tools.engine.compiler import (
    ERRORS_SHOWN,
    CompileAnswer,
    StepError,
    compile_plan,
)
from qvd_trt.tools.engine.tensorrt_install import product_label

_OUTPUT_SHOWN = 2000
_PR_SET_PDEATHSIG = 1


def compile_in_child(plan: BuildPlan, timeout_s: float | None = None) -> CompileAnswer:
    """Parse and build in a child process.

    Returns:
        An answer that holds an engine.

    Raises:
        UserError: A step failed, or the child died.
    """
    with tempfile.TemporaryDirectory() as directory:
        plan_file, answer_file = Path(directory, "plan"), Path(directory, "answer")
        plan_file.write_bytes(pickle.dumps(plan))
        child = subprocess.run(
            [
                *(sys.executable, "-m", "qvd_trt.tools.engine.compile_process"),
                *(str(plan_file), str(answer_file), str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if not answer_file.exists():
            said = (child.stdout + child.stderr)[-_OUTPUT_SHOWN:].strip()
            raise UserError(
                f"{product_label(plan.kind, plan.version)} ended with code {child.returncode} "
                f"while building {_named(plan)}: {said or 'it said nothing'}"
            )
        answer: CompileAnswer = pickle.loads(answer_file.read_bytes())
    if answer.failed is not None:
        raise UserError(_failure(plan, answer))
    return answer


def main(arguments: Sequence[str]) -> None:
    """The child: run the build that a file describes."""
    plan_file, answer_file = map(Path, arguments[:2])
    end_with(int(arguments[2]))
    plan: BuildPlan = pickle.loads(plan_file.read_bytes())
    try:
        answer = compile_plan(plan)
    except StepError as error:
        answer = CompileAnswer(failed=error.step, errors=error.errors)
    except Exception as error:  # the bindings raise what they like, a traceback helps nobody
        answer = CompileAnswer(failed="build", errors=(f"{type(error).__name__}: {error}",))
    try:
        answer_file.write_bytes(pickle.dumps(answer))
    except OSError as error:
        answer_file.unlink(missing_ok=True)  # Half of it would be read.
        sys.exit(f"{error}; free space for scratch files, or give another folder with TMPDIR")


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent is gone, however that ended (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It was gone before the kernel was asked.
        sys.exit(1)


def _named(plan: BuildPlan) -> Path:
    """The file as the user knows it."""
    return plan.source or plan.model


def _failure(plan: BuildPlan, answer: CompileAnswer) -> str:
    label = product_label(plan.kind, plan.version)
    said = "; ".join(answer.errors[-ERRORS_SHOWN:]) or "it logged no error"
    if answer.failed == "device":
        return (
            f"{label} needs an NVIDIA GPU to build and found none it can use: {said}; build where "
            "the engine will run, or give --runtime rtx (`pip install tensorrt-rtx`), which builds "
            "on a CPU, with --ahead-of-time for GPUs such as SM89"
        )
    if answer.failed == "plugin":
        return (
            f"{label} cannot use the plugin: {said}; rebuild it with `python -m "
            "qvd_trt.trt_plugins build`, for this TensorRT and this machine"
        )
    if answer.failed == "parse":
        first = "; ".join(answer.errors[:ERRORS_SHOWN]) or "it logged no error"
        return f"{label} cannot read {_named(plan)}: {first}"
    if plan.cublas and "cublas" in said.lower():
        said += "; install cuBLAS, or give --no-cublas"
    return f"{label} cannot build {_named(plan)}: {said}"


if __name__ == "__main__":
    main(sys.argv[1:])
