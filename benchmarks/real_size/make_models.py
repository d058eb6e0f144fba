"""Writes the float, W8A8 and ModelOpt files of a real-size model, and their skeletons.

    PYTHONPATH=.src python -m benchmarks.real_size.make_models unet --work /tmp/real_size \
        --modelopt /path/to/modelopt/venv/bin/python [--skeletons FOLDER]

Steps, each skipped when its file exists (`--steps` picks some):

    export    float.onnx           opset 20, dynamic, checked against torch
    calls     calls/               four self-sampled calls of the float model
    float     float17.onnx         lowered by our own pass, for the fp16 engine
    ours      w8a8.onnx            qvd-export --target trt8 (qvd), HTDQ inlined
              w8a8_plugin.onnx     the same plan with HTDQ as the plugin node
    implicit  w8a8_implicit.onnx   the UNet's convolutions alone, for qvd-build --implicit
    modelopt  modelopt.onnx        ModelOpt INT8 PTQ of the same float graph (a copy)
    skeletons NAME_VARIANT.onnx.xz the real static shapes, without weights (skeleton.py)

Latency depends on which layers are quantized and not on the values of scales, so four calls at a
small shape calibrate.

ModelOpt chooses operators and layers itself, with calibration method max, and fp32 scales around Q
and DQ on float weights (TensorRT 8.6 knows no others). Two of its rules look at shapes: products
with one row or an extent under 16 stay float, which it infers from `--calibration_shapes`: it gets
the real ones; and attention over more than 512 keys stays float, which it measures on the calls:
their shapes have as many attentions over 512 keys as the real ones. So it decides as it would at
the real size. Its nodes are numbered for it, because it matches its own exclusions as patterns. Of
the UNet it quantizes a narrow twin (widen.py). It writes opset 19 or more; our own pass lowers that
to 17, which changes no Q or DQ.

The UNet needs 20 GB of memory (measuring held-out calls) and 45 GB of disk, and takes 25 minutes on
two cores; `wan --layers 10` half of that.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from benchmarks.real_size.models import MODELS, RealSizeModel, Shapes
from benchmarks.real_size.skeleton import SKELETONS, strip
from benchmarks.real_size.widen import widen
from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.sources.self_sampling import SelfSampling, SelfSamplingOptions
from qvd_trt.export.apply_plan import ApplyOptions
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.graph.signature import read_signature
from qvd_trt.export.model_file import load_model, save_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.passes.tensorrt8 import NormalizeWithoutPlugin, WholeShapes
from qvd_trt.export.progress import SilentProgress
from qvd_trt.export.targets import TARGETS, FloatType, HtdqForm
from qvd_trt.tools.quantize import quantize
from qvd_trt.tools.quantize_request import QuantizeRequest, plan_path

TRAJECTORIES, STEPS = 2, 2
TRT8_OPSET = 17
MODELOPT_OPSET = 19
"""The least that ModelOpt writes; it would raise a lower one by a converter that ends at 2 GiB."""

VARIANTS: Mapping[str, str] = {
    "fp": "float17.onnx",
    "w8a8": "w8a8.onnx",
    "plugin": "w8a8_plugin.onnx",
    "implicit": "w8a8_implicit.onnx",
    "modelopt": "modelopt.onnx",
}
"""Name of a skeleton, and the file it is made from."""


def export(model: RealSizeModel, folder: Path) -> None:
    """Write the float model."""
    import torch

    from qvd_trt.export.from_torch import export_denoiser

    torch.manual_seed(0)
    report = export_denoiser(
        model.build(),
        model.inputs(model.export_shapes, 1),
        model.dynamic_dims,
        folder / "float.onnx",
        verify_inputs=[model.inputs(model.verify_shapes, 2)],
    )
    print(f"{report.parameters / 1e6:.0f} M parameters, error {report.max_relative_error:.1e}")


def record_calls(model: RealSizeModel, folder: Path) -> None:
    """Sample trajectories of the float model and write every call's inputs."""
    path = folder / "float.onnx"
    options = SelfSamplingOptions(
        sampler=str(model.sampling["sampler"]),
        shift=None if "shift" not in model.sampling else float(model.sampling["shift"]),
        steps=STEPS,
        samples=TRAJECTORIES,
        shapes=model.calibration_shapes,
    )
    source = SelfSampling(options, read_signature(load_model(path).graph))
    session = open_session(path, bounded_memory=True)
    calls: list[DenoiserCall] = []

    def denoise(call: DenoiserCall) -> AnyArray:
        start = time.perf_counter()
        calls.append(call)
        out: AnyArray = session.run(None, dict(call.inputs))[0]
        print(f"call {len(calls)}: {time.perf_counter() - start:.0f} s", flush=True)
        return out

    source.drive(denoise)
    (folder / "calls").mkdir(exist_ok=True)
    for trajectory in range(TRAJECTORIES):
        own = [call.inputs for call in calls if call.trajectory == trajectory]
        stacked = {name: np.stack([inputs[name] for inputs in own]) for name in own[0]}
        np.savez(folder / "calls" / f"{trajectory}.npz", **stacked)  # type: ignore[arg-type]


def lower(
    source: Path, target: Path, opset: int, rename: Callable[[int, str], str] | None = None
) -> None:
    """Write a file at a lower opset, its nodes renamed by their position and name."""
    model = load_model(source).clone()
    Prepare()(model)
    if rename is not None:
        for index, node in enumerate(model.graph):
            node.name = rename(index, node.name or "")
    if model.opset_imports[""] > opset:
        LowerOpset(opset)(model)
        RemoveUnusedNodesPass()(model)
    save_model(model, target, external=True)


def write_w8a8(folder: Path) -> None:
    """Write our W8A8 files."""
    first, second = folder / "w8a8.onnx", folder / "w8a8_plugin.onnx"
    if not first.exists():
        _quantize(folder, first, HtdqForm.INLINE, plan=_existing(plan_path(first)))
    _quantize(folder, second, HtdqForm.PLUGIN, plan=plan_path(first))


def write_w8a8_convolutions(folder: Path) -> None:
    """Write the W8A8 file for a build with ranges, in which all but convolutions is float."""
    output = folder / "w8a8_implicit.onnx"
    plan = _existing(plan_path(output))
    _quantize(folder, output, HtdqForm.INLINE, plan, () if plan else ("MatMul",))


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _quantize(
    folder: Path, output: Path, form: HtdqForm, plan: Path | None, keep: Sequence[str] = ()
) -> None:
    calls = tuple(sorted((folder / "calls").glob("*.npz")))
    report = quantize(
        QuantizeRequest(
            model=folder / "float.onnx",
            output=output,
            apply=ApplyOptions(TARGETS["trt8"], FloatType.FP32, form),
            algorithm="qvd",
            calibration=() if plan else calls,
            plan=plan,
            keep=keep,
        ),
        SilentProgress(),
    )
    print(f"{output.name}: {report.quantized_layers} layers, {report.seconds}", flush=True)


def quantize_by_modelopt(model: RealSizeModel, folder: Path, python: Path) -> None:
    """Run ModelOpt on a copy of the float graph, then lower its file."""
    scratch = folder / "modelopt"
    scratch.mkdir(exist_ok=True)
    source = folder / "float.onnx"
    if model.narrow is not None:
        source = scratch / "float.onnx"
        if not source.exists():
            export(model.narrow(), scratch)
    output = scratch / "quantized.onnx"
    if not output.exists():
        run_modelopt(model, source, output, folder / "calls", python)
    if model.narrow is None:
        lower(output, folder / "modelopt.onnx", TRT8_OPSET, unnumbered)
        return
    lower(output, scratch / "quantized17.onnx", TRT8_OPSET, unnumbered)
    lower(source, scratch / "float17.onnx", TRT8_OPSET)
    widen(
        scratch / "quantized17.onnx",
        scratch / "float17.onnx",
        folder / "float17.onnx",
        folder / "modelopt.onnx",
    )


def numbered(index: int, name: str) -> str:
    """A name that is found in no other name.

    ModelOpt takes its own excluded names for patterns: without this, the exclusion of one
    `node_scaled_dot_product_attention` drops every `node_scaled_dot_product_attention_N`.
    """
    return f"n{index:05d}.{name}"


def unnumbered(_: int, name: str) -> str:
    """The name that a node had before :func:`numbered`."""
    return re.sub(r"^n\d{5}\.", "", name)


def run_modelopt(
    model: RealSizeModel, source: Path, output: Path, recorded: Path, python: Path
) -> None:
    """ModelOpt's own INT8 quantization of a copy of the file, with its defaults."""
    copy, calls = output.with_name("float19.onnx"), output.with_name("calls.npz")
    lower(source, copy, MODELOPT_OPSET, numbered)
    files = [np.load(path) for path in sorted(recorded.glob("*.npz"))]
    # ModelOpt cuts one array into calls along the batch axis.
    joined = {
        name: np.concatenate([call for file in files for call in file[name]])
        for name in model.dtypes
    }
    np.savez(calls, **joined)  # type: ignore[arg-type]
    # The real shapes for its rules; the calls' own shapes are those of the arrays.
    shapes = (f"{name}:{'x'.join(map(str, shape))}" for name, shape in model.real_shapes.items())
    command: list[str | Path] = [
        *(python, "-m", "modelopt.onnx.quantization", "--quantize_mode=int8"),
        *("--calibration_method=max", "--high_precision_dtype=fp32"),
        *("--calibration_eps", "cpu", "--use_external_data_format"),
        *("--onnx_path", copy, "--output_path", output),
        *("--calibration_data_path", calls, "--calibration_shapes", ",".join(shapes)),
    ]
    subprocess.run(command, check=True)


def write_static(source: Path, target: Path, shapes: Shapes) -> None:
    """Write a file with static input shapes and everything computed from shapes folded.

    TensorRT does the same while it builds; done here, TensorRT 8.6 has fewer operators to read.
    Weights stay where they are.
    """
    model = ir.load(source)
    for value in model.graph.inputs:
        value.shape = ir.Shape(shapes[value.name or ""])
    for node in model.graph:
        for output in node.outputs:
            output.shape = None
    _fold_shapes(model)
    NormalizeWithoutPlugin()(model)
    _fold_shapes(model)
    WholeShapes()(model)
    ir.save(model, target)


def _fold_shapes(model: ir.Model) -> None:
    fold_constants(model, onnx_shape_inference=True, input_size_limit=4096, output_size_limit=4096)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RemoveUnusedNodesPass()(model)


def write_skeletons(model: RealSizeModel, folder: Path, skeletons: Path) -> None:
    """Write the skeleton of every variant that exists."""
    skeletons.mkdir(parents=True, exist_ok=True)
    for variant, file in VARIANTS.items():
        if (folder / file).exists():
            target = skeletons / f"{model.name}_{variant}.onnx.xz"
            static = folder / f"static_{file}"
            write_static(folder / file, static, model.real_shapes)
            summary = strip(static, target, model.real_shapes)
            static.unlink()
            print(f"{target.name}: {summary}", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--layers", type=int, help="of wan (30), of a block of unet (2)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the full-size files")
    parser.add_argument("--skeletons", type=Path, default=SKELETONS)
    parser.add_argument("--modelopt", type=Path, help="python of ModelOpt's environment")
    parser.add_argument("--steps", nargs="+", help="only these")
    options = parser.parse_args()
    make = MODELS[options.model]
    model = make(options.layers) if options.layers else make()
    folder = options.work / model.name
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, tuple[str, Callable[[], None]]] = {
        "export": ("float.onnx", lambda: export(model, folder)),
        "calls": ("calls/1.npz", lambda: record_calls(model, folder)),
        "float": (
            "float17.onnx",
            lambda: lower(folder / "float.onnx", folder / "float17.onnx", TRT8_OPSET),
        ),
        "ours": ("w8a8_plugin.onnx", lambda: write_w8a8(folder)),
        "implicit": ("w8a8_implicit.onnx", lambda: write_w8a8_convolutions(folder)),
        "modelopt": (
            "modelopt.onnx",
            lambda: quantize_by_modelopt(model, folder, options.modelopt),
        ),
        "skeletons": ("", lambda: write_skeletons(model, folder, options.skeletons)),
    }
    for name, (product, step) in steps.items():
        if options.steps and name not in options.steps:
            continue
        if name == "implicit" and options.model != "unet":
            continue
        if product and (folder / product).exists():
            continue
        if name == "modelopt" and options.modelopt is None:
            print("modelopt: left out, no --modelopt")
            continue
        start = time.perf_counter()
        step()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
