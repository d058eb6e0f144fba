"""Builds the plugin library with CMake, nvcc and TensorRT's headers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qvd_trt.trt_plugins.library import LIBRARY_NAME, PluginError, library_folder

SOURCES = Path(__file__).parent
DEFAULT_CUDA = Path("/usr/local/cuda")
ROOT_VARIABLES = ("TENSORRT_ROOT", "TensorRT_ROOT")
LAST_LINES = 30


@dataclass(frozen=True, slots=True)
class TensorRTHeaders:
    """TensorRT's headers and the version that they are of."""

    folder: Path
    major: int
    minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build.

    Attributes:
        tensorrt_root: Where TensorRT's tar was unpacked; by default from ``TENSORRT_ROOT``, else
            the system's include folders.
        output: Folder for the library; by default one in the user's cache for each major version.
        architectures: GPUs to build for, for example ``90``; by default all that nvcc knows, from
            Turing on.
        definitions: More CMake variables.
    """

    tensorrt_root: Path | None = None
    output: Path | None = None
    architectures: Sequence[str] = ()
    definitions: Mapping[str, str] = field(default_factory=dict)


def build_library(request: BuildRequest) -> Path:
    """Build the library and return its path.

    Raises:
        PluginError: A tool or the headers are missing, or the build failed.
    """
    cmake = shutil.which("cmake")
    if cmake is None:
        raise PluginError("cmake was not found: install it, for example with `pip install cmake`")
    nvcc = find_nvcc()
    _check_architectures(nvcc, request.architectures)
    headers = find_headers(request.tensorrt_root)
    output = request.output or library_folder(headers.major)
    definitions = {
        "CMAKE_CUDA_COMPILER": str(nvcc),
        "TENSORRT_INCLUDE_DIR": str(headers.folder),
        **request.definitions,
    }
    if request.architectures:
        definitions["CMAKE_CUDA_ARCHITECTURES"] = ";".join(request.architectures)
    with tempfile.TemporaryDirectory(prefix="qvd-trt-") as folder:
        options = [f"-D{name}={value}" for name, value in definitions.items()]
        _run([cmake, "-S", str(SOURCES), "-B", folder, *options])
        _run([cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1)])
        return _install(Path(folder) / LIBRARY_NAME, output)


def find_nvcc() -> Path:
    """Path of CUDA's compiler: ``CUDACXX``, the PATH, ``CUDA_HOME``, ``CUDA_PATH``.

    Raises:
        PluginError: There is none.
    """
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), DEFAULT_CUDA]
    in_homes = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    for name in (os.environ.get("CUDACXX"), "nvcc", *in_homes):
        found = shutil.which(name) if name else None
        if found:
            return Path(found)
    raise PluginError("nvcc was not found: install the CUDA toolkit, or set CUDA_HOME to it")


def find_headers(root: Path | None = None) -> TensorRTHeaders:
    """TensorRT's headers, of version 8.6 or newer.

    Args:
        root: Where TensorRT's tar was unpacked.

    Raises:
        PluginError: There are none, or they are too old.
    """
    folders = list(_header_folders(root))
    for folder in folders:
        version = folder / "NvInferVersion.h"
        if version.is_file():
            major, minor = (_version_part(version.read_text(), p) for p in ("MAJOR", "MINOR"))
            if (major, minor) < (8, 6):
                raise PluginError(f"TensorRT 8.6 or newer is needed: {folder} is {major}.{minor}")
            return TensorRTHeaders(folder, major, minor)
    raise PluginError(
        f"TensorRT's headers (NvInferVersion.h) are not in {', '.join(map(str, folders))}: they "
        "come with its tar or deb package, not with the Python wheels; give --tensorrt-root or "
        "set TENSORRT_ROOT"
    )


def _header_folders(root: Path | None) -> Iterator[Path]:
    roots = [root] if root else [Path(os.environ[v]) for v in ROOT_VARIABLES if os.environ.get(v)]
    for folder in roots:
        yield from (folder / "include", folder)
    if not roots:
        system = Path("/usr/include")
        yield from (system / f"{platform.machine()}-linux-gnu", system, Path("/usr/local/include"))


def _version_part(text: str, part: str) -> int:
    # Newer headers define the first name through the second.
    found = re.search(rf"^#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)? +(\d+)", text, re.M)
    if found is None:
        raise PluginError("NvInferVersion.h does not say which version it is of")
    return int(found[1])


def _check_architectures(nvcc: Path, wanted: Sequence[str]) -> None:
    if not wanted:
        return
    listing = subprocess.run(
        [nvcc, "--list-gpu-arch"], stdout=subprocess.PIPE, text=True, check=False
    ).stdout
    known = re.findall(r"compute_(\d+)", listing)
    for name in wanted:
        # CMake's own words (`native`, `all`) and suffixes (`90a`, `90-real`) are left to it.
        number = re.match(r"\d+", name)
        if number and known and number[0] not in known:
            raise PluginError(f"{nvcc} cannot build for {name}, only for {', '.join(known)}")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines()[-LAST_LINES:]
        raise PluginError("\n".join([f"`{' '.join(command[:3])} ...` failed:", *lines]))


def _install(library: Path, folder: Path) -> Path:
    """Put the library in place at once, so that a running program keeps the one it has loaded."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / library.name
        partial = folder / f".{library.name}.{os.getpid()}"
        shutil.copy2(library, partial)
        partial.replace(target)
    except OSError as error:
        raise PluginError(f"cannot write to {folder}: {error.strerror}") from error
    return target
