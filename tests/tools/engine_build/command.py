"""Runs `qvd-build` in this process and looks at everything it did."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from qvd_trt.tools.qvd_build import main
from tests.tools.command import Result, contents

SHAPES = ("--shapes", "sample:1x16x16x16", "timestep:1")
"""Shapes of the small UNet."""

PRINT = (*SHAPES, "--print-trtexec", "--tensorrt-version")
"""Checks a request against a TensorRT that need not be installed."""


class BuildCommand:
    """The command and the folder it runs in."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        """Run with these arguments, whatever comes of it."""
        before = contents(self.folder)
        self._capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
        out, err = self._capsys.readouterr()
        after = contents(self.folder)
        assert before.keys() <= after.keys()  # nothing was removed
        changed = {name for name, digest in after.items() if before.get(name) != digest}
        return Result(code, out, err, frozenset(changed))

    def done(self, *arguments: str | Path) -> Result:
        """Run where it must succeed."""
        result = self(*arguments)
        assert result.code == 0, result.err
        return result

    def refused(self, *arguments: str | Path) -> str:
        """Run where it must refuse; returns the one line it says."""
        result = self(*arguments)
        assert result.code == 2, result.err or result.out
        assert not result.written
        assert result.out == ""
        assert result.err.count("\n") == 1, result.err
        prefix = "qvd-build: error: "
        assert result.err.startswith(prefix), result.err
        return result.err.removeprefix(prefix).rstrip("\n")

    def printed(self, *arguments: str | Path) -> list[str]:
        """The words of the one command line that it prints."""
        result = self.done(*arguments, "--print-trtexec")
        assert result.err == ""
        assert not result.written
        assert result.out.count("\n") == 1
        return shlex.split(result.out)
