"""The command as a process of its own: starting, failing, being interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qvd_trt.export.errors import UserError
from qvd_trt.tools.cli.common import run_command
from tests.tools.command import FAST, Command, contents

PROCESS = (sys.executable, "-m", "qvd_trt.tools.cli.export")

BLOCKED = """\
import pathlib, time
import numpy as np

def load_data():
    for step in range(2):
        yield {"sample": np.zeros((1, 16, 8, 8), np.float32), "timestep": np.array([step])}
    pathlib.Path("running").touch()
    time.sleep(60)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROCESS, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["export", "build", "validate"])
def test_help_imports_nothing_heavy(name: str) -> None:
    script = (
        "import sys\n"
        f"from qvd_trt.tools.cli.{name} import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as leaving:\n    assert leaving.code == 0\n"
        "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'rich', 'torch', 'polygraphy'}\n"
        "print('heavy:', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert f"usage: qvd-{name}" in done.stdout
    assert done.stdout.endswith("heavy: []\n")


def test_whole_run(command: Command) -> None:
    done = run(command.folder, "model.onnx", *FAST)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("quantized ")
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_refusal(command: Command) -> None:
    done = run(command.folder, "absent.onnx")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("qvd-export: error: absent.onnx does not exist")


def heed_interrupts() -> None:
    """Undo what a shell does to jobs in the background, and they hand on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted(command: Command) -> None:
    (command.folder / "loader.py").write_text(BLOCKED)
    before = contents(command.folder)
    process = subprocess.Popen(
        [*PROCESS, "model.onnx", "--calib", "loader.py", "--stats", "s.npz"],
        cwd=command.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    running = command.folder / "running"
    deadline = time.monotonic() + 60
    while not running.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "qvd-export: interrupted\n")
    running.unlink()
    after = contents(command.folder)
    assert {name: after[name] for name in after if "__pycache__" not in name} == before


@pytest.mark.parametrize("function", ["measure_file", "save_model", "save_plan", "apply_plan"])
@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)]
)
def test_stopped_late(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error: BaseException,
    code: int,
) -> None:
    """Whenever it stops, it leaves all of the output or nothing."""

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"qvd_trt.tools.quantize.{function}", stop)
    result = command("model.onnx", *FAST)
    assert result.code == code
    assert result.err.count("\n") == 1
    assert not result.written


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise UserError("too\nlong; cut it")

    def full() -> int:
        raise OSError(28, "No space left on device", "out.onnx")

    assert run_command("name", lambda: 0) == 0
    assert run_command("name", refuse) == 2
    assert capsys.readouterr().err == "name: error: too long; cut it\n"
    assert run_command("name", full) == 2
    assert "No space left on device: 'out.onnx'; check" in capsys.readouterr().err
