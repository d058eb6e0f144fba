"""Runs a command in this process and looks at everything it did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qvd_trt.tools.cli.export import main

FAST = ("--sampler", "flow", "--steps", "3", "--samples", "2", "--shapes", "sample:1x16x8x8")
"""Self-sampling of the small UNet in a tenth of a second."""


@dataclass(frozen=True)
class Result:
    """What one run gave.

    `written` are the paths that appeared or changed, relative to the folder.
    """

    code: int
    out: str
    err: str
    written: frozenset[str]

    def json(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.out)
        return report


class Command:
    """A command and the folder it runs in."""

    name = "qvd-export"
    main: Callable[[Sequence[str]], int] = staticmethod(main)

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        """Run with these arguments, whatever comes of it."""
        before = contents(self.folder)
        self._capsys.readouterr()
        try:
            code = self.main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
        out, err = self._capsys.readouterr()
        after = contents(self.folder)
        removed = before.keys() - after.keys()
        assert all(name.endswith(".npz.partial") for name in removed), removed
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
        assert result.err.endswith("\n")
        assert result.err.count("\n") == 1, result.err
        prefix = f"{self.name}: error: "
        assert result.err.startswith(prefix), result.err
        return result.err.removeprefix(prefix).rstrip("\n")


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder; folders themselves have an empty one."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }
