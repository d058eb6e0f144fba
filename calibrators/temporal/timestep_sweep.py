"""Temporal features over any set of timesteps, from the part of the graph that computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qvd_trt.calibrators.statistics.activation_stats import (
    EVERY_FOLD,
    TemporalFeatures,
    merge_temporal,
)
from qvd_trt.export.arrays import AnyArray, Float64Array
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.values import input_dependence
from qvd_trt.export.ort_session import open_session, run_session
from qvd_trt.export.plan.site_types import Site


class TemporalSweep:
    """Evaluates temporal sites alone, without the denoiser around them.

    Their subgraph reads the timestep, perhaps other conditioning, and only the *shape* of the
    latent, so a call costs microseconds.
    """

    def __init__(self, model: FloatModel, sites: Sequence[Site]) -> None:
        self._timestep = model.signature.timestep
        self._sites = list(sites)
        part = _part_that_computes(model.source, [site.tensor for site in sites])
        self.table_rows = _table_rows(part.graph, self._timestep)
        """Rows of the table that the timestep picks from, or None: it can be no greater."""
        self._session = open_session(part, model.data_folder)
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
        like = template[self._timestep]
        for timestep in timesteps:
            feed: dict[str, AnyArray] = {name: template[name] for name in self._read}
            feed[self._timestep] = np.full_like(like, timestep)
            values = run_session(self._session, [site.tensor for site in self._sites], feed)
            for site, value in zip(self._sites, values, strict=True):
                rows = np.unique(value.reshape(-1, site.channels), axis=0).astype(np.float32)
                feature = TemporalFeatures(
                    rows,
                    np.full(len(rows), float(timestep)),
                    np.full(len(rows), EVERY_FOLD, np.uint8),
                )
                seen = found.get(site.tensor)
                found[site.tensor] = feature if seen is None else merge_temporal(seen, feature)
        return found


def training_timesteps(seen: Float64Array, table_rows: int | None = None) -> Float64Array:
    """All timesteps of training: the rows of a table, else guessed from the scale of those seen.

    Integers 0..999 for discrete models (and flow models that multiply sigma by 1000), 1000 values
    over the seen range otherwise (log-sigma conditioning).
    """
    if table_rows is not None:
        return np.arange(table_rows, dtype=np.float64)
    if seen.max() > 10:
        return np.arange(max(1000, int(np.ceil(seen.max())) + 1), dtype=np.float64)
    return np.linspace(seen.min(), seen.max(), 1000)


def _table_rows(graph: ir.Graph, timestep: str) -> int | None:
    """Rows of a stored embedding that is gathered by the timestep, through Casts and Reshapes."""
    dependence = input_dependence(graph)
    for node in graph:
        if node.op_type != "Gather" or node.domain:
            continue
        table, index = node.inputs[0], node.inputs[1]
        tensor = None if table is None else ir.convenience.get_const_tensor(table)
        if tensor is None or index is None or dependence.get(index) != frozenset({timestep}):
            continue
        if node.attributes.get_int("axis", 0) == 0 and len(tensor.shape) > 1:
            return int(tensor.shape.numpy()[0])
    return None


def _part_that_computes(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """The subgraph of some float32 tensors; the inputs that it does not read are left out."""
    graph = ir.convenience.extract(model.graph, list(model.graph.inputs), tensors)
    unread = [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]
    for value in unread:
        graph.inputs.remove(value)
    for value in graph.outputs:
        value.dtype = value.dtype or ir.DataType.FLOAT
    functions = [function.clone() for function in model.functions.values()]
    part = ir.Model(graph, ir_version=model.ir_version, functions=functions)
    part.opset_imports.update(model.opset_imports)
    return part
