"""How a command ends: codes, signals, a stdout that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()


class TestCrash:
    def crash(self) -> int:
        raise ValueError("too\nfar")

    def test_has_a_code_of_its_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_command("name", self.crash) == 70
        err = capsys.readouterr().err
        assert err == (
            "name: error: this is a bug of name, please report it: ValueError: too far "
            "(QVD_TRACEBACK=1 shows the traceback)\n"
        )

    def test_shows_its_traceback(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("QVD_TRACEBACK", "1")
        assert run_command("name", self.crash) == 70
        err = capsys.readouterr().err
        assert err.startswith("Traceback (most recent call last):\n")
        assert 'raise ValueError("too\\nfar")' in err
        assert err.splitlines()[-1].startswith("name: error: this is a bug")

    def test_refusal_is_none(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Negative control, and its traceback helps nobody."""
        monkeypatch.setenv("QVD_TRACEBACK", "1")

        def refuse() -> int:
            raise UserError("no; do so")

        assert run_command("name", refuse) == 2
        assert capsys.readouterr().err == "name: error: no; do so\n"

    def test_no_memory_can_be_mended(self, capsys: pytest.CaptureFixture[str]) -> None:
        def grow() -> int:
            raise MemoryError("Unable to allocate 9 TiB")

        assert run_command("name", grow) == 2
        assert "out of memory (Unable to allocate 9 TiB); give fewer" in capsys.readouterr().err

    def test_of_a_whole_command(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise KeyError("odd")

        monkeypatch.setattr("qvd_trt.tools.quantize.solve", fail)
        result = command("model.onnx", *FAST)
        assert (result.code, result.out, result.written) == (70, "", frozenset())
        assert "KeyError: 'odd'" in result.err


def send(number: signal.Signals) -> int:
    """A body that sends its own process a signal."""
    os.kill(os.getpid(), number)
    return 0


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_leave_nothing(self, command: Command, number: signal.Signals, tmp_path: Path) -> None:
        (command.folder / "loader.py").write_text(BLOCKED)
        before = contents(command.folder)
        scratch = tmp_path / "scratch"
        process = subprocess.Popen(
            [*PROCESS, "model.onnx", "--calib", "loader.py", "--stats", "s.npz"],
            cwd=command.folder,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(command.folder / "running", process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (128 + number, "")
        assert err == f"qvd-export: stopped by {number.name}\n"
        (command.folder / "running").unlink()
        after = contents(command.folder)
        assert {name: after[name] for name in after if "__pycache__" not in name} == before
        # ONNX Runtime leaves a file of its own.
        assert {path.name for path in scratch.iterdir()} <= {".ses"}
        (scratch / ".ses").unlink(missing_ok=True)

    def test_stay_ignored(self, capsys: pytest.CaptureFixture[str]) -> None:
        """As nohup wants it; and what was there before is there afterwards."""
        former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            assert run_command("name", lambda: send(signal.SIGHUP)) == 0
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, former)
        assert run_command("name", lambda: send(signal.SIGTERM)) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert capsys.readouterr().err == "name: stopped by SIGTERM\n"


def run_with_stdout(command: Command, arguments: Sequence[str], stdout: int) -> tuple[int, str]:
    done = subprocess.run(
        [*PROCESS, "model.onnx", *FAST, *arguments],
        cwd=command.folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [(), ("--json",), ("-v",)], ids=str)
class TestStdout:
    def check(self, command: Command, code: int, err: str) -> None:
        assert code == 0
        assert err.startswith("qvd-export: warning: done, but stdout takes no more of the summary")
        assert err.count("\n") == 1
        written = {"model.w8a8.onnx", "model.w8a8.plan.json", "model.w8a8.report.json"}
        assert written <= contents(command.folder).keys()

    def test_full(self, command: Command, arguments: Sequence[str]) -> None:
        with Path("/dev/full").open("w") as full:
            self.check(command, *run_with_stdout(command, arguments, full.fileno()))

    def test_reader_is_gone(self, command: Command, arguments: Sequence[str]) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            self.check(command, *run_with_stdout(command, arguments, writing))
        finally:
            os.close(writing)

    def test_closed(self, command: Command, arguments: Sequence[str]) -> None:
        words = " ".join([*PROCESS, "model.onnx", *FAST, *arguments])
        done = subprocess.run(
            ["sh", "-c", f"{words} >&-"], cwd=command.folder, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert "model.w8a8.onnx" in contents(command.folder)


def test_printed_command_that_nobody_takes(command: Command) -> None:
    """There it is all that is asked for."""
    words = [sys.executable, "-m", "qvd_trt.tools.cli.build", "model.onnx", "--print-trtexec"]
    shapes = ["--shapes", "sample:1x16x8x8", "timestep:1", "--tensorrt-version", "10"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*words, *shapes],
            cwd=command.folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr.splitlines()[-1]


CHILD = """\
import os, pathlib, subprocess, sys, time
script = '''
import pathlib, sys, time
from qvd_trt.tools.engine.compile_process import end_with
end_with(int(sys.argv[1]))
pathlib.Path("running").touch()
time.sleep(60)
'''
child = subprocess.Popen([sys.executable, "-c", script, str(os.getpid())])
pathlib.Path("child").write_text(str(child.pid))
child.wait()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.terminate])
def test_build_child_ends_with_its_parent(
    tmp_path: Path, end: Callable[[subprocess.Popen[str]], None]
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", CHILD], cwd=tmp_path, text=True)
    wait_for(tmp_path / "running", parent)
    child = int((tmp_path / "child").read_text())
    assert alive(child)
    end(parent)
    parent.wait(timeout=60)
    deadline = time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_build_child_of_a_parent_that_is_gone(tmp_path: Path) -> None:
    script = "from qvd_trt.tools.engine.compile_process import end_with; end_with(1 << 22)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 1
