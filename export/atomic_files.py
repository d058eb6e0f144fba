"""Files appear whole or not at all, and never in the place of what is read."""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
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
        UserError: a folder, a pipe or a device stands in the place of one of the files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        staged = Path(scratch) / path.name
        yield staged
        made = sorted(Path(scratch).iterdir(), key=lambda file: (file == staged, file.name))
        for target in (path.parent / file.name for file in made):
            if target.exists() and not target.is_file():
                raise UserError(f"{target} {not_a_file(target)}; remove it, or give another output")
        for file in made:
            file.replace(path.parent / file.name)


def write_atomically(path: Path, content: bytes) -> None:
    """Write one whole file: never half of it, and nothing after an error."""
    with written_together(path) as staged:
        staged.write_bytes(content)


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed while it wrote the path left beside it."""
    folder, name = path.parent, glob.escape(path.name)
    # tempfile's names: eight characters after the prefix.
    for scratch in folder.glob(f".{name}.????????"):
        if scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch, ignore_errors=True)


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


def beside(path: Path, suffix: str) -> Path:
    """The file of that suffix beside another one; also beside ``.``, which has no name."""
    return path.parent / f"{path.stem}{suffix}"


def same_file(one: Path | None, other: Path) -> bool:
    """Whether both exist and are one file, through links too."""
    return one is not None and one.exists() and other.exists() and one.samefile(other)


def not_a_file(path: Path) -> str:
    """Why there is no plain file to read, as the rest of a sentence that begins with the path."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"is a link to {path.readlink()}, which does not exist"
        return "does not exist"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"
    for test, kind in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe, which cannot be read twice"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return f"is {kind}"
    return "is no plain file"


def refuse_overwriting(
    written: Iterable[tuple[str, Path | None]], read: Iterable[Path | None]
) -> None:
    """Refuse outputs that would replace an input, or each other; through links and folders.

    Args:
        written: The option that names each output, and the output: a file, or a folder that files
            are written into. None stands for an option that was not given.
        read: Inputs. A folder stands for itself and the files in it.

    Raises:
        UserError: naming the option, the output, and what it would replace.
    """
    inputs: dict[object, Path] = {}
    for path in read:
        if path is None:
            continue
        for file in (path, *(path.iterdir() if path.is_dir() else ())):
            inputs.update(dict.fromkeys(_identities(file), file))
    taken: dict[Path, str] = {}
    for option, path in written:
        if path is None:
            continue
        if hit := next((inputs[key] for key in _identities(path) if key in inputs), None):
            raise UserError(f"{option} {path} would overwrite the input {hit}; give another path")
        place = Path(os.path.realpath(path))
        for other, owner in taken.items():
            if place.is_relative_to(other) or other.is_relative_to(place):
                place_of = "is the file of" if place == other else "lies with the files of"
                raise UserError(f"{option} {path} {place_of} {owner}, too; give another path")
        taken[place] = option


def _identities(path: Path) -> list[object]:
    """What tells files apart: where the path leads, and the file that is there (hard links)."""
    found: list[object] = [os.path.realpath(path)]
    if path.exists():
        status = path.stat()
        found.append((status.st_dev, status.st_ino))
    return found


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
