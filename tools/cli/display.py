"""What the commands draw: tables that can be searched in a log, and the progress bar."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
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
from rich.text import Text

from qvd_trt.export.progress import Advance

SPEED_PERIOD = 3600.0
"""Seconds over which the speed is averaged; one call of a large model may take minutes."""


class SummaryConsole(Console):
    """A console on stdout that raises when its reader is gone, where rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Raise on the error that is being handled."""
        raise


def print_labelled(
    console: Console, rows: Sequence[tuple[str, Sequence[str]]], *, wrap: bool = False
) -> None:
    """Print a bold label and its lines, row by row; ``wrap`` cuts long lines on a terminal."""
    indent = 2 + max(len(name) for name, _ in rows)
    for name, lines in rows:
        if wrap and console.is_terminal:
            lines = [part for line in lines for part in _wrapped(line, console.width - indent)]
        for index, line in enumerate(lines):
            label = name if index == 0 else ""
            console.print(Text.assemble((label.ljust(indent), "bold"), line), soft_wrap=True)


def print_table(console: Console, rows: Iterable[Sequence[str]], *, header: bool = True) -> None:
    """Print cells in columns, the first row bold when it is a header."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for index, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        style = "bold" if header and index == 0 else ""
        console.print(Text(line.rstrip(), style), soft_wrap=True)


def _wrapped(line: str, width: int) -> Sequence[str]:
    return textwrap.wrap(line, max(width, 20), break_long_words=False, break_on_hyphens=False)


class BarProgress:
    """Draws each step with its elapsed and remaining time, and removes it when done.

    Where there is no terminal nothing is drawn.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Draw on a console; by default on stderr."""
        self._console = console or Console(stderr=True)

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
