from __future__ import annotations

import ast
import configparser
import email.message
import email.parser
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[2]
FOLDERS = ("calibrators", "export", "tools", "trt_plugins")


@dataclass(frozen=True)
class Archives:
    sdist: frozenset[str]
    wheel: frozenset[str]
    wheel_path: Path

    def read(self, name: str) -> str:
        with zipfile.ZipFile(self.wheel_path) as wheel:
            return wheel.read(name).decode()

    def dist_info(self, name: str) -> str:
        (path,) = (f for f in self.wheel if f.endswith(f".dist-info/{name}"))
        return self.read(path)

    @property
    def metadata(self) -> email.message.Message:
        return email.parser.Parser().parsestr(self.dist_info("METADATA"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """An sdist of the checkout, and the wheel that is built from the sdist."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist_path,) = directory.glob("*.tar.gz")
    (wheel_path,) = directory.glob("*.whl")
    with tarfile.open(sdist_path) as sdist:
        sdist_files = frozenset(
            member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()
        )
    with zipfile.ZipFile(wheel_path) as wheel:
        return Archives(sdist_files, frozenset(wheel.namelist()), wheel_path)


def checkout_files(folder: str) -> set[str]:
    """Return the files of a folder that belong to the project."""
    generated = {"__pycache__", "build"}
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not generated & set(path.parts)
    }


def test_nothing_generic_lands_in_site_packages(archives: Archives) -> None:
    assert {name.partition("/")[0] for name in archives.wheel} == {
        "qvd_trt",
        f"qvd_trt-{archives.metadata['Version']}.dist-info",
    }


def test_qvd_trt_is_four_packages_and_their_face(archives: Archives) -> None:
    below = {name.split("/")[1] for name in archives.wheel if name.startswith("qvd_trt/")}
    assert below == {*FOLDERS, "__init__.py", "py.typed"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_wheel_holds_the_whole_folder(archives: Archives, folder: str) -> None:
    inside = {name for name in archives.wheel if name.startswith(f"qvd_trt/{folder}/")}
    assert inside == {f"qvd_trt/{name}" for name in checkout_files(folder)}
    assert f"qvd_trt/{folder}/__init__.py" in inside


def test_plugin_sources_are_shipped(archives: Archives) -> None:
    sources = {Path(n) for n in archives.wheel if n.startswith("qvd_trt/trt_plugins/")}
    assert {"CMakeLists.txt"} <= {path.name for path in sources}
    assert {".cu", ".h"} <= {path.suffix for path in sources}


def test_nothing_compiled_is_shipped(archives: Archives) -> None:
    compiled = {".pyc", ".so", ".o", ".a", ".dll", ".engine", ".plan"}
    assert not {n for n in archives.wheel | archives.sdist if Path(n).suffix in compiled}


def test_sdist_can_be_built_and_tested(archives: Archives) -> None:
    files = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    files |= {"pyproject.toml", "PKG-INFO", ".gitignore"}
    assert {name for name in archives.sdist if "/" not in name} == files
    folders = {name.partition("/")[0] for name in archives.sdist} - files
    assert folders == {*FOLDERS, "tests", "docs", ".src"}
    assert "tests/house/test_packaging.py" in archives.sdist


def test_license_is_shipped_and_named(archives: Archives) -> None:
    assert archives.metadata["License-Expression"] == "Apache-2.0"
    assert archives.dist_info("licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_commands_name_functions_that_exist(archives: Archives) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(archives.dist_info("entry_points.txt"))
    commands = dict(entry_points["console_scripts"])
    assert "qvd-export" in commands
    for command, target in commands.items():
        module, _, function = target.partition(":")
        source = archives.read(module.replace(".", "/") + ".py")
        functions = {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
        assert function in functions, command


def test_main_job_needs_no_torch_and_no_tensorrt(archives: Archives) -> None:
    requirements = archives.metadata.get_all("Requires-Dist") or []
    core = [r for r in requirements if "extra ==" not in r]
    assert any(r.startswith("numpy") for r in core)
    assert not [r for r in core if r.startswith(("torch", "diffusers", "tensorrt"))]


def test_unpacked_wheel_is_imported(archives: Archives, tmp_path: Path) -> None:
    with zipfile.ZipFile(archives.wheel_path) as wheel:
        wheel.extractall(tmp_path)
    script = (
        "import importlib, sys\n"
        "sys.path[:] = [sys.argv[1], *(p for p in sys.path if not p.endswith('.src'))]\n"
        "import qvd_trt\n"
        "print(qvd_trt.__file__)\n"
        "for name in sys.argv[2:]:\n"
        "    print(importlib.import_module(f'qvd_trt.{name}').__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path), *FOLDERS],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    expected = [str(tmp_path / "qvd_trt" / folder / "__init__.py") for folder in ("", *FOLDERS)]
    assert done.stdout.split() == expected
