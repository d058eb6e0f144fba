"""Which TensorRT this Python can import: ``tensorrt`` (8.6, 10, 11) or ``tensorrt_rtx``."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

from qvd_trt.export.errors import UserError

Runtime = Literal["auto", "tensorrt", "rtx"]
RuntimeKind = Literal["tensorrt", "rtx"]
Version = tuple[int, ...]

OLDEST_TENSORRT: Version = (8, 6)
_MODULES: dict[RuntimeKind, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_REMEDY: dict[RuntimeKind, str] = {
    "tensorrt": "install it with `pip install tensorrt` (TensorRT 10 or 11; for 8.6 "
    "`pip install tensorrt==8.6.0` on Python 3.10)",
    "rtx": "install it with `pip install tensorrt-rtx`",
}
_POLYGRAPHY_VARIABLE = "POLYGRAPHY_USE_TENSORRT_RTX"


@dataclass(frozen=True, slots=True)
class TensorRTInstall:
    """An imported TensorRT.

    Attributes:
        kind: ``tensorrt``, or ``rtx`` for TensorRT-RTX, whose versions count on their own.
        version: Its version numbers, for example ``(8, 6, 0)``.
        module: The Python package.
    """

    kind: RuntimeKind
    version: Version
    module: ModuleType

    @property
    def label(self) -> str:
        """Name and version as people write them."""
        return product_label(self.kind, self.version)


def product_label(kind: RuntimeKind, version: Version) -> str:
    """Name and version as people write them, for example ``TensorRT-RTX 1.7.1``."""
    product = "TensorRT-RTX" if kind == "rtx" else "TensorRT"
    return f"{product} {'.'.join(map(str, version))}"


def find_tensorrt(runtime: Runtime) -> TensorRTInstall:
    """Import the asked TensorRT and tell Polygraphy which one it is.

    Call it before ``polygraphy.backend.trt`` is imported, which reads the choice only once.

    Args:
        runtime: ``auto`` takes ``tensorrt`` when it is installed, else TensorRT-RTX.

    Raises:
        UserError: It is not installed, cannot be loaded, or is older than 8.6.
    """
    kind = installed_kind() if runtime == "auto" else runtime
    if kind is None:
        raise UserError(
            "no TensorRT is installed: `pip install tensorrt` (TensorRT 10 or 11; for 8.6 "
            "`pip install tensorrt==8.6.0` on Python 3.10), or `pip install tensorrt-rtx`"
        )
    module = _import(kind)
    version = parse_version(str(module.__version__))
    if kind == "tensorrt" and version < OLDEST_TENSORRT:
        raise UserError(
            f"TensorRT {module.__version__} is too old: {_REMEDY[kind].removeprefix('install it ')}"
        )
    _tell_polygraphy(kind)
    return TensorRTInstall(kind, version, module)


def installed_kind() -> RuntimeKind | None:
    """Which TensorRT ``auto`` means, without importing it; None where there is none."""
    return next((kind for kind, name in _MODULES.items() if find_spec(name) is not None), None)


def parse_version(text: str) -> Version:
    """The leading numbers of a version: ``10.7.0.post1`` is ``(10, 7, 0)``."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _import(kind: RuntimeKind) -> ModuleType:
    name = _MODULES[kind]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise UserError(f"{name} cannot be imported: {error}; {_REMEDY[kind]}") from error
        raise UserError(f"{name} is not installed: {_REMEDY[kind]}") from error
    except (ImportError, OSError) as error:
        raise UserError(
            f"{name} is installed, but its libraries cannot be loaded: {error}; reinstall it, or "
            "put their folder in LD_LIBRARY_PATH"
        ) from error


def _tell_polygraphy(kind: RuntimeKind) -> None:
    """Set Polygraphy's choice for this process and its children.

    Both the variable and the value that was read from it, since Polygraphy may be imported already.
    """
    os.environ[_POLYGRAPHY_VARIABLE] = "1" if kind == "rtx" else "0"
    from polygraphy import config

    config.USE_TENSORRT_RTX = kind == "rtx"
