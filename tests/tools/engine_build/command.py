"""Runs `qvd-build` in this process and looks at everything it did."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from qvd_trt.tools.cli.build import main
from tests.tools.command import Command

SHAPES = ("--shapes", "sample:1x16x16x16", "timestep:1")
"""Shapes of the small UNet."""

PRINT = (*SHAPES, "--print-trtexec", "--tensorrt-version")
"""Checks a request against a TensorRT that need not be installed."""


class BuildCommand(Command):
    """`qvd-build`."""

    name = "qvd-build"
    main: Callable[[Sequence[str]], int] = staticmethod(main)

    def printed(self, *arguments: str | Path) -> list[str]:
        """The words of the one command line that it prints."""
        result = self.done(*arguments, "--print-trtexec")
        assert result.err == ""
        assert not result.written
        assert result.out.count("\n") == 1
        return shlex.split(result.out)
