"""Temporal features over any set of timesteps, from the part of the graph that computes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from qvd_trt.calibrators.arrays import AnyArray, Float64Array
from qvd_trt.calibrators.ort_session import open_session, run_session
from qvd_trt.calibrators.sites import Site
from qvd_trt.calibrators.sources.signature import ModelSignature
from qvd_trt.calibrators.stats import TemporalFeatures, merge_temporal


class TemporalSweep:
    """Evaluates temporal sites alone, without the denoiser around them.

    Their subgraph reads the timestep, perhaps other conditioning, and only the *shape* of the
    latent, so a call costs microseconds.
    """

    def __init__(self, model: Path, signature: ModelSignature, sites: Sequence[Site]) -> None:
        self._signature = signature
        self._sites = list(sites)
        proto = onnx.load(model, load_external_data=False)
        _keep_only(proto, [site.tensor for site in sites])
        self._session = open_session(proto, model.parent)
        self._read = [value.name for value in self._session.get_inputs()]

    def run(
        self, template: Mapping[str, AnyArray], timesteps: Float64Array
    ) -> dict[str, TemporalFeatures]:
        """Features ``[S, C]`` of every site at the given timesteps.

        Args:
            template: The inputs of any call; those other than the timestep are used as they are.
            timesteps: ``[S]``, converted to the timestep input's dtype.
        """
        found: dict[str, TemporalFeatures] = {}
        like = template[self._signature.timestep]
        for timestep in timesteps:
            feed: dict[str, AnyArray] = {name: template[name] for name in self._read}
            feed[self._signature.timestep] = np.full_like(like, timestep)
            values = run_session(self._session, [site.tensor for site in self._sites], feed)
            for site, value in zip(self._sites, values, strict=True):
                rows = np.unique(value.reshape(-1, site.channels), axis=0).astype(np.float32)
                feature = TemporalFeatures(rows, np.full(len(rows), float(timestep)))
                seen = found.get(site.tensor)
                found[site.tensor] = feature if seen is None else merge_temporal(seen, feature)
        return found


def training_timesteps(seen: Float64Array) -> Float64Array:
    """All timesteps of training, guessed from the scale of those seen.

    Integers 0..999 for discrete models (and flow models that multiply sigma by 1000), 1000 values
    over the seen range otherwise (log-sigma conditioning).
    """
    if seen.max() > 10:
        return np.arange(max(1000, int(np.ceil(seen.max())) + 1), dtype=np.float64)
    return np.linspace(seen.min(), seen.max(), 1000)


def _keep_only(proto: onnx.ModelProto, outputs: list[str]) -> None:
    """Reduce a model in place to what computes ``outputs``."""
    graph = proto.graph
    producer = {name: node for node in graph.node for name in node.output}
    needed: set[str] = set()
    stack = list(outputs)
    while stack:
        name = stack.pop()
        if not name or name in needed:
            continue
        needed.add(name)
        if name in producer:
            stack.extend(_read_by(producer[name]))
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    initializers = [value for value in graph.initializer if value.name in needed]
    inputs = [value for value in graph.input if value.name in needed]
    for field, kept in (
        (graph.node, nodes),
        (graph.initializer, initializers),
        (graph.input, inputs),
    ):
        del field[:]
        field.extend(kept)
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs
    )


def _read_by(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read_by(inner)
