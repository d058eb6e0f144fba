"""The command as a process: what it imports and how it answers."""

from __future__ import annotations

import subprocess
import sys

from tests.tools.engine_build.command import PRINT, BuildCommand

NOT_NEEDED = ("onnxruntime", "torch", "scipy")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_help() -> None:
    done = python("-m", "qvd_trt.tools.cli.build", "--help")
    assert done.returncode == 0
    assert "--print-trtexec" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, qvd_trt.tools.cli.build; print(*sys.modules)"
    loaded = python("-c", script).stdout.split()
    assert "qvd_trt.tools.cli.common" in loaded
    assert not {"numpy", "onnx", "onnx_ir", "polygraphy", "rich", *NOT_NEEDED} & set(loaded)


def test_build_path_needs_no_onnxruntime(build_command: BuildCommand) -> None:
    script = (
        "import sys, qvd_trt.tools.engine.compile_process, qvd_trt.tools.cli.build_summary\n"
        "from qvd_trt.tools.cli.build import main\n"
        "code = main(sys.argv[1:])\n"
        "print(*sys.modules, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = python("-c", script, "trt8.onnx", *PRINT, "8.6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trtexec --onnx=")
    loaded = done.stderr.split()
    assert "onnx_ir" in loaded
    assert not set(NOT_NEEDED) & set(loaded)
