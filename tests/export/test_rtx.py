"""The emitted graphs in the real TensorRT-RTX compiler: every planned layer must become INT8.

The compiler is built ahead of time and on a CPU for GPUs of the generations 8.9 and 12.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")

from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.model_file import save_model
from qvd_trt.export.plan.site_types import LayerOp
from qvd_trt.export.targets import TARGETS, FloatType
from tests.export.calibrated import EXTENTS, Calibrated
from tests.rtx.builder import build, int8_layers

ARCHITECTURES = ("animatediff", "latte", "svd", "wan")
CAPABILITIES = ("8.9", "12.0")
CASES = [
    ("animatediff", "trt", "fp16"),
    *((name, "rtx", "fp16") for name in ("latte", "svd", "wan")),
    *(
        pytest.param("animatediff", target, dtype, marks=pytest.mark.slow)
        for target, dtype in (("rtx", "fp16"), ("trt8", "fp32"))
    ),
]


@pytest.mark.parametrize(("name", "target", "dtype"), CASES)
def test_planned_layers_are_int8(
    name: str,
    target: str,
    dtype: str,
    calibrated: Callable[[str], Calibrated],
    tmp_path: Path,
) -> None:
    source = calibrated(name)
    path = tmp_path / "model.onnx"
    options = ApplyOptions(TARGETS[target], FloatType(dtype))
    save_model(apply_plan(source.model, source.plan, options), path)
    built = build(path, CAPABILITIES, profiles(source))
    planned = {quant.name for site in source.plan.dense for quant in site.layers}
    assert len(planned) >= 12
    assert int8_layers(built) == planned


@pytest.mark.parametrize("name", ["wan"])
def test_float_model_has_no_int8_layer(name: str, calibrated: Callable[[str], Calibrated]) -> None:
    """Negative control."""
    source = calibrated(name)
    built = build(source.path, CAPABILITIES, profiles(source))
    assert int8_layers(built) == set()
    listed = {node for layer in built.layers for node in layer.onnx_nodes}
    layers = {layer.name for layer in source.sites.all_layers}
    assert len(layers & listed) > len(layers) / 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_temporal_sites_are_found(name: str, calibrated: Callable[[str], Calibrated]) -> None:
    sites = calibrated(name).sites
    assert sites.temporal
    projections = {layer.op for site in sites.temporal for layer in site.layers}
    assert projections <= {LayerOp.GEMM, LayerOp.MATMUL}
    strict = {site.tensor for site in sites.temporal} & sites.strict_temporal
    # svd adds the embedding of fps, motion and noise level before the projections.
    assert bool(strict) == (name != "svd")


def profiles(source: Calibrated) -> Mapping[str, tuple[list[int], list[int], list[int]]]:
    """(min, opt, max) shapes of the inputs that have a symbolic extent."""
    found = {}
    for spec in source.signature.inputs:
        if all(isinstance(extent, int) for extent in spec.shape):
            continue
        usual = [e if isinstance(e, int) else EXTENTS[e] for e in spec.shape]
        most = [e if isinstance(e, int) else 2 * EXTENTS[e] for e in spec.shape]
        found[spec.name] = (usual, usual, most)
    return found
