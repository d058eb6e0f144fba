"""With enough sample rows every position that a layer reads is seen, the last one included."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.statistics.collector import MAX_ROWS, StatisticsCollector, row_limit
from qvd_trt.export.model_file import open_model
from qvd_trt.export.plan.site_types import GraphSites, Layer, LayerOp, Site, SiteKind, Window
from tests.export.graphs import GraphBuilder

Array = npt.NDArray[Any]
CHANNELS = 4
SHAPE = (2, CHANNELS, 5, 4)
"""Batch, channels, height and width of the activation that is read."""

WINDOWS = [
    Window((1, 1), (1, 1), (1, 1), (0, 0), (0, 0)),
    Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    Window((3, 2), (2, 1), (1, 1), (1, 0), (1, 0)),
    Window((3, 3), (2, 2), (1, 1), (0, 1), (0, 1)),
    Window((2, 2), (3, 2), (2, 1), (2, 0), (1, 1)),
]
"""Kernel, strides, dilations, pads at the begin and at the end."""


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.key)
def test_convolution_reads_every_window(window: Window, tmp_path: Path) -> None:
    layer = Layer("conv", LayerOp.CONV, "conv.weight", "conv_out", 0, 1, CHANNELS, 99, window)
    values = numbered(SHAPE)
    sampled = sampled_rows(values, layer, 1, tmp_path)
    assert seen(sampled) == seen(windows_of(values, window))


def test_linear_layer_reads_every_row(tmp_path: Path) -> None:
    layer = Layer("linear", LayerOp.MATMUL, "linear.weight", "linear_out", 1, 0, CHANNELS, 99)
    values = numbered((3, 7, CHANNELS))
    sampled = sampled_rows(values, layer, -1, tmp_path)
    assert seen(sampled) == seen(values.reshape(21, CHANNELS, 1))


def sampled_rows(values: Array, layer: Layer, channel_axis: int, folder: Path) -> Array:
    """What the collector keeps of one call in which the layer reads these values.

    At 512 rows a given position out of 40 is missed with probability (39/40)^512, 2e-6; the draw
    is seeded by the call.
    """
    net = GraphBuilder()
    shape = list(values.shape)
    sample, time = net.input("sample", shape), net.input("timestep", [1])
    output = net.op("Add", sample, net.op("Sin", time, name="wave"), name="timed")
    path = folder / "model.onnx"
    onnx.save(net.model({output: shape}), path)
    site = Site("sample", SiteKind.DENSE, channel_axis, CHANNELS, (layer,))
    assert row_limit(site) == MAX_ROWS == 512
    sites = GraphSites((site,), (), (), (), frozenset(), frozenset())
    collector = StatisticsCollector(open_model(path), sites, rows=True, expected_calls=1)
    feed = {"sample": values, "timestep": np.ones(1, np.float32)}
    collector.observe(DenoiserCall(feed, trajectory=0, step=0))
    found = collector.finish().sites["sample"].rows[layer.window.key].values
    assert len(found) == MAX_ROWS
    return found


def numbered(shape: tuple[int, ...]) -> Array:
    """Every element another positive number, so that rows tell where they come from."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def seen(rows: Array) -> set[tuple[float, ...]]:
    return {tuple(row.ravel().tolist()) for row in rows}


def windows_of(values: Array, window: Window) -> Array:
    """Every window that fits into the padded activation, `[windows, C, taps]`, by plain loops."""
    pads = zip(window.pads_begin, window.pads_end, strict=True)
    padded = np.pad(values, [(0, 0), (0, 0), *pads])
    steps = []
    for axis in (0, 1):
        span = window.dilations[axis] * (window.kernel[axis] - 1) + 1
        steps.append(range(0, padded.shape[2 + axis] - span + 1, window.strides[axis]))
    found = []
    for image, top, left in itertools.product(padded, *steps):
        taps = [
            image[:, top + i * window.dilations[0], left + j * window.dilations[1]]
            for i, j in itertools.product(range(window.kernel[0]), range(window.kernel[1]))
        ]
        found.append(np.stack(taps, axis=1))
    return np.stack(found)
