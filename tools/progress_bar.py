"""The progress bar of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qvd_trt.export.progress import Advance

SPEED_PERIOD = 3600.0
"""Seconds over which the speed is averaged; one call of a large model may take minutes."""


class BarProgress:
    """Draws each step with its elapsed and remaining time, and removes it when done.

    Where there is no terminal nothing is drawn.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Advance]:
        """Show one step."""
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
        if total is not None:
            columns.append(MofNCompleteColumn())
        columns += [TextColumn("elapsed"), TimeElapsedColumn()]
        if total is not None:
            columns += [TextColumn("remaining"), TimeRemainingColumn()]
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            speed_estimate_period=SPEED_PERIOD,
        ) as progress:
            task = progress.add_task(name, total=total)
            yield lambda: progress.advance(task)
