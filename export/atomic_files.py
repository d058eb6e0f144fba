"""Files appear whole or not at all, and never in the place of what is read."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvd_trt.export.errors import UserError


@contextmanager
def written_together(path: Path) -> Iterator[Path]:
    """Give the path's stand-in in a scratch folder; at the end all files there move beside it.

    The file of the path itself moves last, so that it never names a companion that is not there.
    After an error or an interruption before that nothing of them is left.

    Raises:
        UserError: a folder stands in the place of one of the files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        staged = Path(scratch) / path.name
        yield staged
        made = sorted(Path(scratch).iterdir(), key=lambda file: (file == staged, file.name))
        for target in (path.parent / file.name for file in made):
            if target.is_dir():
                raise UserError(f"{target} is a folder; remove it, or give another output")
        for file in made:
            file.replace(path.parent / file.name)


def write_atomically(path: Path, content: bytes) -> None:
    """Write one whole file: never half of it, and nothing after an error."""
    with written_together(path) as staged:
        staged.write_bytes(content)


def existing_folder(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def require_writable(path: Path) -> None:
    """Refuse a file whose folder neither takes files nor can be made.

    Raises:
        UserError: naming the folder.
    """
    folder = existing_folder(path)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"{path} cannot be written: {folder} is no folder that takes files; "
            "give another path or change its permissions"
        )


def same_file(one: Path | None, other: Path) -> bool:
    """Whether both exist and are one file, through links too."""
    return one is not None and one.exists() and other.exists() and one.samefile(other)


def json_text(data: Any) -> str:
    """Indented JSON; infinite numbers and NaN, which JSON cannot write, become strings."""
    return json.dumps(_writable(data), indent=2)


def _writable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(item) for item in value]
    return value
