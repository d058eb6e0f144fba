"""Exported ONNX files of `tests.models.architectures`, made once and kept between test runs.

An export takes 5 to 30 seconds. The file's name holds a hash of all that decides its content, so a
file that exists is current, and torch is imported only when one is missing.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

_REPOSITORY = Path(__file__).parents[2]
_SOURCES = ("tests/models/architectures.py", "export/from_torch.py", "export/torch_patches.py")
_PACKAGES = ("torch", "diffusers", "onnxscript", "onnx-ir")


def exported(name: str, cache_dir: Path) -> Path:
    """The ONNX file of the architecture `name` in `cache_dir`, exported now if it is not there.

    Safe when several processes ask for it at once: one exports, the others wait. `cache_dir` is
    best `pytestconfig.cache.mkdir("models")`. Raises KeyError for an unknown name and
    qvd_trt.export.from_torch.ExportError when the export fails.
    """
    path = cache_dir / f"{name}-{_key()}.onnx"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            from qvd_trt.export.from_torch import export_denoiser
            from tests.models.architectures import ARCHITECTURES

            denoiser = ARCHITECTURES[name]()
            export_denoiser(
                denoiser.module,
                denoiser.example_inputs,
                denoiser.dynamic_dims,
                path,
                verify_inputs=denoiser.verify_inputs,
                tolerance=1e-5,
            )
    return path


def _key() -> str:
    """Twelve hex digits that change with the sources and the packages an export depends on."""
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update((_REPOSITORY / source).read_bytes())
    for package in _PACKAGES:
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()[:12]
