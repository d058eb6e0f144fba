"""What several test modules share: exported architectures, each calibrated once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.export.calibrated import Calibrated

# Before numpy is imported: in products as small as these, threads only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_UNIT_FOLDERS = (Path(__file__).parent / "calibrators", Path(__file__).parent / "export")
_NEED_WHOLE_MODELS = frozenset({"model_path", "calibrated", "pytestconfig", "outcome"})
_EXPORTING = ("test_from_torch.py", "test_torch_patches.py", "test_trace_errors.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `unit` what tests a module alone, on made-up graphs: the first lane of `.ci/run`."""
    for item in items:
        if (
            item.path.parent in _UNIT_FOLDERS
            and item.path.name not in _EXPORTING
            and not _NEED_WHOLE_MODELS & set(getattr(item, "fixturenames", ()))
            and item.get_closest_marker("slow") is None
        ):
            item.add_marker("unit")


@pytest.fixture(scope="session")
def model_path(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """The exported float model of an architecture: wan, svd, latte or animatediff."""

    @cache
    def path(name: str) -> Path:
        if find_spec("diffusers") is None:
            pytest.skip("needs the extra `diffusers`")
        from tests.models.cache import exported

        assert pytestconfig.cache is not None
        return exported(name, pytestconfig.cache.mkdir("models"))

    return path


@pytest.fixture(scope="session")
def calibrated(model_path: Callable[[str], Path]) -> Callable[[str], Calibrated]:
    """An architecture with statistics of two calls on noise and its `qvd` plan at w8a8."""
    from tests.export.calibrated import calibrated_model

    return cache(lambda name: calibrated_model(model_path(name)))
