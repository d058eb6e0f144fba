from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from qvd_trt.trt_plugins import build
from qvd_trt.trt_plugins.library import PluginError
from tests.gpu import has_gpu

SOURCES = build.SOURCES


@dataclass(frozen=True, slots=True)
class BuiltPlugin:
    library: Path
    driver: Path
    headers: build.TensorRTHeaders

    def drive(self, *arguments: str | Path) -> str:
        command = [str(word) for word in (self.driver, self.library, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def nvcc() -> Path:
    try:
        return build.find_nvcc()
    except PluginError:
        pytest.skip("needs nvcc")


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips without an NVIDIA GPU."""
    if not has_gpu():
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="session")
def lookup_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel's search, compiled by the host compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    driver = tmp_path_factory.mktemp("lookup") / "lookup_driver"
    sources = ["test/lookup_driver.cpp", "src/htdq/table.cpp", "src/htdq/codebook.cpp"]
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES / 'src'}"]
    files = [str(SOURCES / source) for source in sources]
    subprocess.run([compiler, *flags, *files, "-o", str(driver)], check=True)
    return driver


@pytest.fixture(scope="session")
def kernel_driver(nvcc: Path, gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    driver = tmp_path_factory.mktemp("kernel") / "kernel_driver"
    sources = ["test/kernel_driver.cu", "src/htdq/kernel.cu", "src/htdq/table.cpp"]
    files = [str(SOURCES / source) for source in (*sources, "src/htdq/codebook.cpp")]
    flags = ["-std=c++17", "-O3", "-lineinfo", "-arch=native", f"-I{SOURCES / 'src'}"]
    subprocess.run([str(nvcc), *flags, *files, "-o", str(driver)], check=True)
    return driver


@pytest.fixture(scope="session")
def plugin(nvcc: Path, tmp_path_factory: pytest.TempPathFactory) -> BuiltPlugin:
    """The library and the program that drives it, for the headers in TENSORRT_ROOT."""
    if not any(os.environ.get(name) for name in build.ROOT_VARIABLES):
        pytest.skip("needs TensorRT's headers in TENSORRT_ROOT")
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder = tmp_path_factory.mktemp("plugin")
    request = build.BuildRequest(
        output=folder,
        architectures=["native" if has_gpu() else "75-real"],
        definitions={"QVD_TRT_TESTS": "ON", "CMAKE_RUNTIME_OUTPUT_DIRECTORY": str(folder)},
    )
    library = build.build_library(request)
    return BuiltPlugin(library, folder / "plugin_driver", build.find_headers())
