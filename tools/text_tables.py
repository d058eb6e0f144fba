"""The tables that the commands print, so that they can be searched in a log."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text


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
