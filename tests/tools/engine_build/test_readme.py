"""The trtexec commands of the README are those that ``qvd-build`` prints."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house.markdown import joined
from tests.tools.engine_build.command import SHAPES, BuildCommand

README = Path(__file__).parents[3] / "README.md"
BUILDS = re.compile(r"^# TensorRT ([\d.]+)[^\n]*\n(trtexec --onnx=[^\n]*)$", re.MULTILINE)
SHAPE_OPTIONS = ("--minShapes=", "--optShapes=", "--maxShapes=")


@dataclass(frozen=True)
class ReadmeBuild:
    version: str
    words: tuple[str, ...]

    @property
    def plugin(self) -> str | None:
        """The library it loads."""
        for word in self.words:
            option, _, value = word.partition("=")
            if option in ("--plugins", "--dynamicPlugins"):
                return value
        return None


READMES = [
    ReadmeBuild(version, tuple(shlex.split(command)))
    for version, command in BUILDS.findall(joined(README.read_text()))
]


def test_every_version_is_shown_with_and_without_plugin() -> None:
    shown = {(build.version, build.plugin is not None) for build in READMES}
    assert shown == {(v, p) for v in ("10", "11", "8.6") for p in (False, True)} - {
        ("10", True)
    } | {("10.7", True)}


@pytest.mark.parametrize("build", READMES, ids=lambda build: " ".join(build.words[3:]))
def test_is_what_qvd_build_prints(build_command: BuildCommand, build: ReadmeBuild) -> None:
    form = "trt8" if build.version == "8.6" else "trt"
    if build.plugin is not None:
        form += ".plugin"
        (build_command.folder / build.plugin).write_bytes(b"not a library")
    shutil.copy(build_command.folder / f"{form}.onnx", build_command.folder / "model.w8a8.onnx")
    plugin = () if build.plugin is None else ("--plugin", build.plugin)
    printed = build_command.printed(
        *("model.w8a8.onnx", "-o", "model.engine", *SHAPES, *plugin),
        *("--tensorrt-version", build.version),
    )
    inside = [word.replace(f"{build_command.folder}/", "") for word in printed]
    static = [word for word in inside if not word.startswith(SHAPE_OPTIONS)]
    assert tuple(static) == build.words
