"""Probes hold no activations: a probed model needs little more memory than the float model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.statistics.collector import StatisticsCollector
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.model_file import open_model
from qvd_trt.export.ort_session import open_session, run_session
from tests.export.graphs import GraphBuilder

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
BLOCKS, TOKENS, CHANNELS, WIDE = 16, 4096, 64, 256
PROBED_MIB = BLOCKS * TOKENS * (CHANNELS + WIDE) * 4 / 2**20
"""What the inputs of all linear layers take: 80 MiB."""


@pytest.mark.skipif(not STATUS.exists(), reason="reads the peak from /proc")
def test_peak_is_that_of_the_float_model(tmp_path: Path) -> None:
    """By default ONNX Runtime runs the probes late, and all of their inputs wait for them.

    The peaks differ by far less than what is probed; held, it is twice as much, for what the
    layers write is probed as well.
    """
    path = tmp_path / "model.onnx"
    onnx.save(transformer(), path)
    plain, probed = peak_of("plain", path), peak_of("probed", path)
    assert probed - plain < 0.75 * PROBED_MIB


def test_session_options(tmp_path: Path) -> None:
    """The memory pattern would keep a second set of all buffers for the next run."""
    path = tmp_path / "model.onnx"
    onnx.save(transformer(blocks=1), path)
    bounded = open_session(path, bounded_memory=True).get_session_options()
    assert bounded.execution_order == ort.ExecutionOrder.PRIORITY_BASED
    assert not bounded.enable_mem_pattern
    plain = open_session(path).get_session_options()
    assert plain.execution_order == ort.ExecutionOrder.DEFAULT
    assert plain.enable_mem_pattern


def transformer(blocks: int = BLOCKS) -> onnx.ModelProto:
    """Feed-forward blocks with GELU and a residual."""
    net = GraphBuilder()
    sample, time = net.input("sample", [1, TOKENS, CHANNELS]), net.input("timestep", [1])
    x = net.op("Add", sample, net.op("Sin", time, name="wave"), name="timed")
    x = net.linear(x, CHANNELS, CHANNELS, "first")
    for block in range(blocks):
        y = net.layer_norm(x, CHANNELS, f"norm_{block}")
        y = gelu(net, net.linear(y, CHANNELS, WIDE, f"up_{block}"), f"gelu_{block}")
        y = net.linear(y, WIDE, CHANNELS, f"down_{block}")
        x = net.op("Add", x, y, name=f"residual_{block}")
    x = net.linear(x, CHANNELS, CHANNELS, "last")
    return net.model({x: [1, TOKENS, CHANNELS]})


def gelu(net: GraphBuilder, x: str, name: str) -> str:
    """As exporters of older opsets write it; ONNX Runtime makes one node of it."""
    root = net.constant(f"{name}.root", np.float32(2**0.5))
    y = net.op("Erf", net.op("Div", x, root, name=f"{name}_div"), name=f"{name}_erf")
    y = net.op("Add", y, net.constant(f"{name}.one", np.float32(1)), name=f"{name}_plus")
    y = net.op("Mul", x, y, name=f"{name}_mul")
    return net.op("Mul", y, net.constant(f"{name}.half", np.float32(0.5)), name=name)


def peak_of(kind: str, path: Path) -> float:
    """Greatest resident memory in MiB of a process of its own that makes two calls."""
    command = [sys.executable, __file__, kind, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def make_calls(kind: str, path: Path) -> None:
    feeds = {
        "sample": np.random.default_rng(0).normal(size=(1, TOKENS, CHANNELS)).astype(np.float32),
        "timestep": np.ones(1, np.float32),
    }
    if kind == "plain":
        session = open_session(path)
        for _ in range(2):
            run_session(session, None, feeds)
        return
    model = open_model(path)
    sites = find_sites(model)
    assert len(sites.dense) == 2 * BLOCKS
    collector = StatisticsCollector(model, sites, rows=True)
    for step in range(2):
        collector.observe(DenoiserCall(feeds, trajectory=0, step=step))


def peak_resident() -> float:
    """MiB; unlike ``getrusage``, without what the parent process held when it started this one."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    make_calls(sys.argv[1], Path(sys.argv[2]))
    print(peak_resident())
