"""How long-running steps report how far they are; the commands draw it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[], None]


class Progress(Protocol):
    """Shows one step after the other."""

    def step(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """Enter a step of ``total`` units (None when unknown); call the result once per unit."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Advance]:
        """Do nothing."""
        yield lambda: None


SILENT: Progress = SilentProgress()
"""The default of the library's functions."""
