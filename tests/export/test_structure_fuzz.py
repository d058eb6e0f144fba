"""Random denoisers go the whole way, or are refused; what the report says of them is true."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_pybind11_state as runtime
import pytest
from hypothesis import HealthCheck, given, reject, seed, settings

from qvd_trt.export.apply_plan import ApplyOptions, fold_only
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.model_file import open_model
from qvd_trt.export.plan.quant_plan import W8A8, ActivationQuant, DensePlan, LayerQuant, QuantPlan
from qvd_trt.export.plan.site_types import GraphSites
from qvd_trt.export.targets import TARGETS
from qvd_trt.tools.quantize import quantize
from qvd_trt.tools.quantize_report import QuantizationReport
from qvd_trt.tools.quantize_request import QuantizeRequest
from tests.export.files_people_have import WIDTH, denoiser, feeds
from tests.export.random_denoisers import Case, denoisers
from tests.export.test_bodies import EACH, ROWS, loop_in_branch
from tests.export.unrolled import macs

RUNTIME_ERRORS = (runtime.Fail, RuntimeError)

REFUSED = (
    r"the model has opset \d+, target \w+ can be written",
    r"subgraphs cannot be lowered to fp16",
    r"opset 17 does not have this operator",
    r"is neither stated nor inferred; state it",
    r"no layer is left to quantize",
    r"the plan quantizes no layer",
)
"""What a graph of the grammar may be refused for."""

STEADY = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("start", range(8))
def test_some_graphs(start: int) -> None:
    search(start, most=5)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(8, 108))
def test_many_graphs(start: int) -> None:
    search(start, most=7)


@pytest.mark.parametrize(("timestep", "trips"), [(100, 0), (700, 3)])
def test_the_count_itself(timestep: int, trips: int) -> None:
    """By hand: a Loop of three trips in a branch that is taken beyond a timestep of 350."""
    call = {**feeds(), "timestep": np.array([timestep], np.float32)}
    tokens = ROWS * (16 * WIDTH + 2 * WIDTH * WIDTH + WIDTH * 16)
    int8, whole = macs(denoiser(middle=loop_in_branch), call)
    assert whole == tokens + 2 * 32 * 32 + trips * EACH
    assert int8 == 0


def search(start: int, most: int) -> None:
    """A few graphs of one seed; a longer search would go on with variations of those it has."""

    @seed(start)
    @settings(STEADY, max_examples=4)
    @given(denoisers(most))
    def graphs(case: Case) -> None:
        check(case)

    graphs()


def check(case: Case) -> None:
    """Everything that must hold of one graph."""
    calls = case.calls()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "model.onnx"
        onnx.save(case.model, path)
        try:
            expected = [outputs(path, call) for call in calls]
        except RUNTIME_ERRORS:
            reject()  # ONNX Runtime refuses some graphs whose layers are outputs as well
        assert_close(outputs(case.plain, calls[0]), expected[0])
        check_fold(path, calls[-1], expected[-1])
        for target in sorted(TARGETS, key=("ort", "trt8").__contains__, reverse=True):
            report = exported(path, folder, calls, target)
            if report is not None:
                check_share(report, calls)
            if report is not None and report.dtype == "fp32":
                check_sqnr(report, calls[-1], expected[-1][0])


def exported(
    path: Path, folder: Path, calls: list[dict[str, AnyArray]], target: str
) -> QuantizationReport | None:
    """The report of an export, or None where it is refused."""
    files = []
    for index, call in enumerate(calls):
        files.append(folder / f"call_{index}.npz")
        np.savez(files[-1], allow_pickle=False, **call)
    request = QuantizeRequest(
        model=path,
        output=folder / f"{target}.onnx",
        apply=ApplyOptions(TARGETS[target]),
        calibration=files,
        training_timesteps=False,
        stats=folder / "stats.npz",
    )
    try:
        return quantize(request)
    except UserError as refusal:
        if not any(re.search(reason, str(refusal)) for reason in REFUSED):
            raise AssertionError(str(refusal)) from refusal
        return None


def check_fold(path: Path, call: dict[str, AnyArray], expected: list[AnyArray]) -> None:
    """Any shift and scale at every site leave the float function as it is."""
    model = open_model(path)
    try:
        sites = find_sites(model)
    except UserError:  # no layer is left to quantize
        return
    folded = ir.to_proto(fold_only(model, random_maps(sites)))
    shaken = outputs(path, {**call, "sample": call["sample"] * np.float32(1 + 1e-6)})
    assert_close(outputs(folded, call), expected, shaken)


def assert_close(
    found: list[AnyArray], expected: list[AnyArray], shaken: list[AnyArray] | None = None
) -> None:
    """To 1e-5 of the largest element, or what the graph makes of rounding its input anew.

    Deep graphs amplify that, and an output beside the prediction may be a small difference.
    """
    for index, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        tolerance = 1e-4 if index else 1e-5
        if shaken is not None:
            tolerance = max(tolerance, 20 * distance(shaken[index], wanted))
        assert distance(actual, wanted) <= tolerance


def distance(found: AnyArray, expected: AnyArray) -> float:
    """The largest difference, relative to the largest element."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def random_maps(sites: GraphSites) -> QuantPlan:
    rng = np.random.default_rng(0)
    dense = []
    for site in sites.dense:
        activation = ActivationQuant(
            bits=8,
            scale=0.05,
            shift=rng.normal(size=site.channels).astype(np.float32),
            smooth=np.exp(rng.normal(size=site.channels) / 2).astype(np.float32),
        )
        layers = tuple(LayerQuant(layer.name, None) for layer in site.layers)
        dense.append(DensePlan(site.tensor, site.channel_axis, activation, layers))
    return QuantPlan("sha256:none", W8A8, "by hand", tuple(dense), (), ())


def check_share(report: QuantizationReport, calls: list[dict[str, AnyArray]]) -> None:
    """The share of calibration's calls, counted on the written file; the last call is held out."""
    written = onnx.load(report.output)
    counted = np.sum([macs(written, call) for call in calls[:-1]], axis=0)
    assert report.int8_share is not None
    assert report.int8_share.all_layers == pytest.approx(counted[0] / counted[1], rel=1e-9)


def check_sqnr(report: QuantizationReport, call: dict[str, AnyArray], expected: AnyArray) -> None:
    found = outputs(Path(report.output), call)[0]
    noise = np.square(found - expected, dtype=np.float64).sum()
    signal = np.square(expected, dtype=np.float64).sum()
    (score,) = report.held_out
    own = 10 * np.log10(signal / max(noise, 1e-20))
    assert min(score.sqnr, 150) == pytest.approx(min(own, 150), abs=0.1)


def outputs(model: Path | onnx.ModelProto, call: Mapping[str, AnyArray]) -> list[AnyArray]:
    """All outputs, the prediction first; Q and DQ are executed as written."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, ["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    fed = {name: array for name, array in call.items() if name in known}
    found: list[AnyArray] = session.run(None, fed)
    return found
