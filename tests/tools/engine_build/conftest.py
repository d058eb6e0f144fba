from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.engine_build.command import BuildCommand
from tests.tools.engine_build.models import write_forms


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small UNet in every form."""
    folder = tmp_path_factory.mktemp("forms")
    write_forms(folder)
    return folder


@pytest.fixture
def build_command(
    forms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[BuildCommand]:
    """`qvd-build` in a folder of its own that holds the models and a file `lib.so`."""
    folder, scratch = tmp_path / "work", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    for model in forms.glob("*.onnx"):
        shutil.copy(model, folder)
    (folder / "lib.so").write_bytes(b"not a library")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.delenv("QVD_TRT_PLUGIN_LIBRARY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield BuildCommand(folder, capsys)
    assert not list(scratch.iterdir()), "the command left temporary files"
