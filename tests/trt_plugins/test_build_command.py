"""``python -m qvd_trt.trt_plugins``: finding tools, headers and the library."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvd_trt.trt_plugins import build
from qvd_trt.trt_plugins.__main__ import main
from qvd_trt.trt_plugins.library import LIBRARY_NAME, find_library, library_folder

OLD_STYLE = "#define NV_TENSORRT_MAJOR {} //!< major\n#define NV_TENSORRT_MINOR {} //!< minor\n"
NEW_STYLE = (
    "#define TRT_MAJOR_ENTERPRISE {}\n#define TRT_MINOR_ENTERPRISE {}\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n"
)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a cache folder and executables `cmake` and `nvcc` that do nothing."""
    for name in (
        "CUDACXX",
        "CUDA_HOME",
        "CUDA_PATH",
        "QVD_TRT_PLUGIN_LIBRARY",
        *build.ROOT_VARIABLES,
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    for name in ("cmake", "nvcc"):
        tool = tmp_path / "bin" / name
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
    return tmp_path


def write_headers(root: Path, text: str) -> Path:
    (root / "include").mkdir(parents=True)
    (root / "include" / "NvInferVersion.h").write_text(text)
    return root


def write_library(major: int) -> Path:
    folder = library_folder(major)
    folder.mkdir(parents=True)
    (folder / LIBRARY_NAME).touch()
    return folder / LIBRARY_NAME


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a refused command."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    prefix = "python -m qvd_trt.trt_plugins: error: "
    assert printed.err.startswith(prefix)
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix(prefix).strip()


def test_missing_cmake(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "bin" / "cmake").unlink()
    assert error_of(capsys, "build").startswith("cmake was not found")


def test_missing_nvcc(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "bin" / "nvcc").unlink()
    monkeypatch.setattr(build, "DEFAULT_CUDA", machine / "nowhere")
    assert error_of(capsys, "build").startswith("nvcc was not found")


def test_missing_headers(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, "build", "--tensorrt-root", str(machine / "TensorRT"))
    assert str(machine / "TensorRT" / "include") in said
    assert "not with the Python wheels" in said


def test_old_tensorrt(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_headers(machine / "old", OLD_STYLE.format(8, 5))
    said = error_of(capsys, "build", "--tensorrt-root", str(root))
    assert said == f"TensorRT 8.6 or newer is needed: {root}/include is 8.5"


def test_unknown_architecture(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "bin" / "nvcc").write_text("#!/bin/sh\necho compute_75\necho compute_90\n")
    said = error_of(capsys, "build", "--arch", "90-real", "50")
    assert said == f"{machine}/bin/nvcc cannot build for 50, only for 75, 90"


@pytest.mark.parametrize("variable", build.ROOT_VARIABLES)
@pytest.mark.parametrize(
    ("text", "version"),
    [(OLD_STYLE.format(8, 6), (8, 6)), (NEW_STYLE.format(11, 1), (11, 1))],
)
def test_headers_from_the_environment(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    text: str,
    version: tuple[int, int],
) -> None:
    root = write_headers(machine / "trt", text)
    monkeypatch.setenv(variable, str(root))
    headers = build.find_headers()
    assert (headers.folder, (headers.major, headers.minor)) == (root / "include", version)


def test_path_of_the_built_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not built" in error_of(capsys, "path")
    first = write_library(8)
    assert main(["path"]) == 0
    assert capsys.readouterr().out == f"{first}\n"
    second = write_library(10)
    assert "8, 10: say which with --tensorrt" in error_of(capsys, "path")
    assert find_library(10) == second
    assert "for TensorRT 11 is not built" in error_of(capsys, "path", "--tensorrt", "11")


def test_path_from_the_environment(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_library(10)
    named = machine / "mine.so"
    monkeypatch.setenv("QVD_TRT_PLUGIN_LIBRARY", str(named))
    assert error_of(capsys, "path") == f"QVD_TRT_PLUGIN_LIBRARY names {named}, which is not a file"
    named.touch()
    assert find_library() == named


@pytest.mark.parametrize(
    ("arguments", "command"),
    [([], ""), (["biuld"], ""), (["path", "--tensorrt", "ten"], " path"), (["build", "x"], "")],
)
def test_usage_error_is_one_line(
    arguments: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    err = capsys.readouterr().err
    name = f"python -m qvd_trt.trt_plugins{command}"
    assert err.startswith(f"{name}: error: ")
    assert err.endswith(f"; see {name} --help\n")
    assert err.count("\n") == 1
