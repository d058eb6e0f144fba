"""What an export did and cost, as plain data for people and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from qvd_trt.export.atomic_files import json_text
from qvd_trt.export.graph.find_layers import module_path
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.plan.quant_plan import QuantPlan
from qvd_trt.export.plan.site_types import KeptLayer, Layer, OddLayer


@dataclass(frozen=True, slots=True)
class TemporalScore:
    """One temporal site: TDScore of the uniform grid and of its codebook."""

    tensor: str
    quantizer: str
    layers: int
    td_score_before: float
    td_score_after: float


@dataclass(frozen=True, slots=True)
class CallScore:
    """SQNR of the quantized prediction on one call, in dB, and the call's step."""

    timestep: float
    sqnr: float
    step: int


@dataclass(frozen=True, slots=True)
class WeakLayer:
    """A quantized layer and the SQNR of its output on calibration rows, in dB."""

    name: str
    sqnr: float


@dataclass(frozen=True, slots=True)
class LayerNames:
    """What ``--keep`` may call a layer by.

    Attributes:
        name: The node.
        op: Its operator.
        module: The torch module that it was traced from; empty where the file does not tell.
        weight: Its weight.
    """

    name: str
    op: str
    module: str
    weight: str


@dataclass(frozen=True, slots=True)
class Int8Share:
    """Share of multiply-accumulates with int8 input and weight, 0 to 1.

    Attributes:
        all_layers: Among all Conv, Gemm and MatMul nodes with a constant weight.
        eligible: The same without first and last layers and the time path.
    """

    all_layers: float
    eligible: float


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """The outcome of one export.

    ``held_out`` are calls that calibration did not see, ``seen`` some that it did.
    ``float_bytes`` and ``quantized_bytes`` are the sizes of the two models' files; ``written`` are
    all files that were written, and ``plan_sha256`` is of the plan's file, to tell later whether it
    was edited.
    """

    model: str
    output: str
    plan: str
    report: str
    bits: str
    algorithm: str
    target: str
    dtype: str
    calibration: str
    warnings: tuple[str, ...]
    dense_sites: int
    shifted_sites: int
    smoothed_sites: int
    quantized_layers: int
    kept: tuple[KeptLayer, ...]
    temporal: tuple[TemporalScore, ...]
    int8_share: Int8Share | None
    held_out: tuple[CallScore, ...]
    seen: tuple[CallScore, ...]
    weakest: tuple[WeakLayer, ...]
    float_bytes: int
    quantized_bytes: int
    seconds: Mapping[str, float]
    layers: tuple[LayerNames, ...] = ()
    written: tuple[str, ...] = ()
    plan_sha256: str | None = None

    def mean_sqnr(self) -> float | None:
        """Mean SQNR over the held-out calls, in dB."""
        return float(np.mean([s.sqnr for s in self.held_out])) if self.held_out else None

    def unseen_loss(self) -> float | None:
        """How far held-out calls are below calibrated ones of the same steps: mean, in dB.

        None where less than half of the calibrated ones have such a call: trajectories of unlike
        timesteps are no comparison.
        """
        at = {(score.step, score.timestep): score.sqnr for score in self.held_out}
        lost = [
            score.sqnr - at[score.step, score.timestep]
            for score in self.seen
            if (score.step, score.timestep) in at
        ]
        return float(np.mean(lost)) if lost and 2 * len(lost) >= len(self.seen) else None

    def to_json(self) -> str:
        """JSON with the mean of the held-out SQNR; numbers that JSON cannot write are strings."""
        data = {**asdict(self), "held_out_mean_sqnr": self.mean_sqnr()}
        return json_text(data)


def int8_share(
    plan: QuantPlan,
    layers: Sequence[Layer | OddLayer],
    excluded: frozenset[str],
    output_elements: Mapping[str, float],
) -> Int8Share:
    """Weigh the layers by their multiply-accumulates per denoiser call.

    Args:
        plan: The plan; a layer counts when both its input and its weight are quantized densely.
        layers: All layers of the graph.
        excluded: Layers that ``eligible`` leaves out.
        output_elements: Elements each layer writes per call.
    """
    int8 = {
        quant.name
        for site in plan.dense
        if site.activation is not None
        for quant in site.layers
        if quant.weight is not None
    }
    macs = {layer.name: output_elements[layer.name] * layer.macs_per_output for layer in layers}

    def share(names: Sequence[str]) -> float:
        total = sum(macs[name] for name in names)
        return sum(macs[name] for name in names if name in int8) / total if total else 0.0

    names = [layer.name for layer in layers]
    return Int8Share(
        all_layers=share(names),
        eligible=share([name for name in names if name not in excluded]),
    )


def layer_names(model: FloatModel) -> tuple[LayerNames, ...]:
    """The names of every layer that can be quantized, in the order of the graph."""
    return tuple(
        LayerNames(layer.name, layer.op.value, module_path(model.nodes[layer.name]), layer.weight)
        for layer in model.layers.values()
    )


def layers_json(model: FloatModel) -> str:
    """The report's ``layers`` alone, as JSON with that one key."""
    return json_text({"layers": [asdict(names) for names in layer_names(model)]})


def weakest_layers(plan: QuantPlan, count: int = 5) -> tuple[WeakLayer, ...]:
    """The quantized layers with the lowest measured SQNR, lowest first."""
    measured = [WeakLayer(q.name, q.sqnr) for q in plan.layers() if q.sqnr is not None]
    return tuple(sorted(measured, key=lambda layer: layer.sqnr)[:count])
