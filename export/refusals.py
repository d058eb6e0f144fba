"""What an export refuses before it does any work; every refusal is a :class:`UserError`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.plan import QuantPlan
from qvd_trt.calibrators.sites import Layer, LayerOp
from qvd_trt.export.model_file import data_path
from qvd_trt.export.request import QuantizeRequest, plan_path, report_path


def check_paths(request: QuantizeRequest) -> None:
    """Refuse outputs that cannot be written, or that would overwrite what is read."""
    output = request.output
    if output.suffix != ".onnx":
        raise UserError(f"the output {output} must end in .onnx")
    if output.is_dir():
        raise UserError(f"the output {output} is a folder; give a file name")
    if request.stats is not None and request.stats.suffix != ".npz":
        raise UserError(f"--stats: {request.stats} must end in .npz")
    for file in (output, request.stats):
        if file is not None:
            _check_folder(file)
    refuse_overwriting(output, [request.model, *request.calibration])


def _check_folder(file: Path) -> None:
    """Refuse a file whose folder neither takes files nor can be made."""
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"{file} cannot be written: {folder} is no folder that takes files; "
            "give another path or change its permissions"
        )


def refuse_overwriting(output: Path, inputs: Iterable[Path]) -> None:
    """A given plan may lie where the output's plan does: it then stays as it is."""
    written = [output, data_path(output), plan_path(output), report_path(output)]
    for path in inputs:
        for file in written:
            if same_file(file, path):
                raise UserError(
                    f"{file} would overwrite the input {path}; give another output with -o"
                )


def same_file(one: Path | None, other: Path) -> bool:
    """Whether both exist and are one file, through links too."""
    return one is not None and one.exists() and other.exists() and one.samefile(other)


def refuse_empty_plan(plan: QuantPlan) -> None:
    """Refuse a plan that quantizes nothing."""
    if not any(plan.layers()):
        raise UserError("the plan quantizes no layer; see --keep, --min-sqnr and --temporal")


def check_plan_vectors(plan: QuantPlan, layers: Mapping[str, Layer]) -> None:
    """Refuse an edited plan whose vectors are not as long as the model's channels."""
    for site in plan.dense:
        for layer in (layers[quant.name] for quant in site.layers if quant.name in layers):
            axis = 1 if layer.op is LayerOp.CONV else -1
            if site.channel_axis != axis:
                raise UserError(f"--plan: channel_axis of {site.tensor!r} must be {axis}")
            channels = layer.weight_size // (layer.out_channels * layer.window.taps) * layer.groups
            for name in ("shift", "smooth"):
                vector = getattr(site.activation, name, None)
                if vector is not None and len(vector) != channels:
                    raise UserError(
                        f"--plan: {name} of {site.tensor!r} has {len(vector)} numbers, layer "
                        f"{layer.name!r} reads {channels} channels"
                    )
    for tensor, quants in plan.sites():
        if not quants:
            raise UserError(f"--plan: site {tensor!r} has no layers; remove it")
        for quant in quants:
            bias, reader = quant.bias_correction, layers.get(quant.name)
            if bias is not None and reader is not None and len(bias) != reader.out_channels:
                raise UserError(
                    f"--plan: bias_correction of {quant.name!r} has {len(bias)} numbers, the layer "
                    f"has {reader.out_channels} output channels"
                )
