"""How the command talks: the table, the JSON, the progress bar."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qvd_trt.export.plan.quant_plan import W8A8
from qvd_trt.export.plan.site_types import KeptLayer
from qvd_trt.tools.cli import validate_summary
from qvd_trt.tools.cli.display import BarProgress
from qvd_trt.tools.cli.export_summary import print_summary
from qvd_trt.tools.quantize_report import CallScore, QuantizationReport, TemporalScore, WeakLayer
from qvd_trt.tools.validation.report import (
    CallErrors,
    ErrorMeasure,
    FreeRunReport,
    ValidationReport,
)
from tests.tools.command import FAST, Command

REPORT = QuantizationReport(
    model="model.onnx",
    output="model.w8a8.onnx",
    plan="model.w8a8.plan.json",
    report="model.w8a8.report.json",
    bits=str(W8A8),
    algorithm="qvd",
    target="trt",
    dtype="fp16",
    calibration="3 files of recorded, 75 calls",
    warnings=(),
    dense_sites=1,
    shifted_sites=0,
    smoothed_sites=1,
    quantized_layers=2,
    kept=(),
    temporal=(TemporalScore("temb", "hidi", 1, 0.4, 0.9),),
    int8_share=None,
    held_out=(CallScore(999.0, 21.5, 0), CallScore(0.0, 23.5, 1)),
    seen=(CallScore(0.0, 25.0, 1), CallScore(500.0, 90.0, 2)),
    weakest=(WeakLayer("ffn.[down]", 17.25),),
    float_bytes=2_500_000_000,
    quantized_bytes=640_000_000,
    seconds={"load": 1.25},
    written=("model.w8a8.onnx", "model.w8a8.plan.json", "model.w8a8.report.json"),
)


def shown(
    capsys: pytest.CaptureFixture[str], report: QuantizationReport, *, verbose: bool = False
) -> str:
    print_summary(report, verbose=verbose)
    return capsys.readouterr().out


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, REPORT) == (
        "quantized      w8a8 by qvd: 2 layers at 1 site (0 shifted, 1 scaled) and 1 temporal site\n"
        "target         trt, fp16\n"
        "calibration    3 files of recorded, 75 calls\n"
        "kept float     none\n"
        "temporal       temb: hidi, 1 layer, TDScore 0.400 (uniform) -> 0.900\n"
        "file size      2.5 GB -> 640.0 MB\n"
        "output SQNR    22.5 dB mean over 2 held-out steps, worst 21.5 dB at timestep 999\n"
        "weakest layer  ffn.[down]: 17.2 dB\n"
        "time           load 1.2 s\n"
        "written        model.w8a8.onnx\n"
        "               model.w8a8.plan.json\n"
        "               model.w8a8.report.json\n"
    )


def test_reasons_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    kept = [KeptLayer(f"conv_{index}", "Conv", "first layer") for index in range(3)]
    kept += [KeptLayer(f"gemm_{index}", "Gemm", f"reason {index}") for index in range(9)]
    out = shown(capsys, replace(REPORT, kept=tuple(kept)), verbose=True)
    assert "kept float     3 layers: first layer\n" in out
    assert "               1 layer: reason 0\n" in out
    assert "               2 layers: other reasons, listed by -v\n" in out
    for layer in kept:
        assert f"{layer.name:<10}  {layer.op:<8}  {layer.reason}\n" in out


@pytest.mark.parametrize("columns", [60, 100])
def test_wraps_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    print_summary(REPORT, verbose=False)
    from rich.text import Text

    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert max(len(line) for line in lines) <= columns
    assert " ".join(" ".join(lines).split()) == " ".join(shown_plain(capsys, monkeypatch).split())


def shown_plain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("FORCE_COLOR")
    return shown(capsys, REPORT)


def test_loss_on_unseen_calls_is_taken_at_equal_steps() -> None:
    assert REPORT.unseen_loss() == pytest.approx(1.5)
    assert replace(REPORT, seen=(CallScore(500.0, 90.0, 2),)).unseen_loss() is None
    unlike = replace(REPORT, seen=(*REPORT.seen, CallScore(7.0, 90.0, 3)))
    assert unlike.unseen_loss() is None


def test_conditional_calls_are_compared_with_conditional_ones() -> None:
    """Guidance makes two calls at a timestep, and the unconditional one is alike everywhere."""
    held_out = (CallScore(5.0, 20.0, 0), CallScore(5.0, 40.0, 1))
    assert replace(REPORT, held_out=held_out, seen=(CallScore(5.0, 30.0, 0),)).unseen_loss() == 10


def test_json_holds_numbers_that_json_lacks() -> None:
    report = replace(REPORT, held_out=(CallScore(0.0, float("inf"), 0),))

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    loaded = json.loads(report.to_json(), parse_constant=refuse)
    assert loaded["held_out"] == [{"timestep": 0.0, "sqnr": "inf", "step": 0}]
    assert loaded["held_out_mean_sqnr"] == "inf"


def test_json_is_what_the_report_file_holds(command: Command) -> None:
    result = command.done("model.onnx", *FAST, "--json")
    assert result.err == ""
    assert result.json() == json.loads(Path("model.w8a8.report.json").read_text())


def test_json_holds_what_the_table_shows(command: Command) -> None:
    table = command.done("model.onnx", *FAST, "--seed", "3").out
    report = json.loads((command.folder / "model.w8a8.report.json").read_text())
    site = report["temporal"][0]
    worst = min(report["held_out"], key=lambda score: score["sqnr"])
    for text in (
        f"{report['bits']} by {report['algorithm']}: {report['quantized_layers']} layers at "
        f"{report['dense_sites']} sites ({report['shifted_sites']} shifted, "
        f"{report['smoothed_sites']} scaled)",
        f"{report['target']}, {report['dtype']}",
        report["calibration"],
        f"{report['int8_share']['all_layers']:.1%} of all",
        f"{site['tensor']}: {site['quantizer']}, {site['layers']} layers, "
        f"TDScore {site['td_score_before']:.3f} (uniform) -> {site['td_score_after']:.3f}",
        f"{report['float_bytes'] / 1000:.1f} kB -> {report['quantized_bytes'] / 1000:.1f} kB",
        f"{report['held_out_mean_sqnr']:.1f} dB mean over {len(report['held_out'])} held-out",
        f"worst {worst['sqnr']:.1f} dB at timestep {worst['timestep']:g}",
        f"{report['weakest'][0]['name']}: {report['weakest'][0]['sqnr']:.1f} dB",
        report["output"],
        report["plan"],
        report["report"],
    ):
        assert text in table, text
    assert report["float_bytes"] == (command.folder / "model.onnx").stat().st_size
    assert report["quantized_bytes"] == (command.folder / "model.w8a8.onnx").stat().st_size


def test_verbose_lists_every_kept_layer(command: Command) -> None:
    result = command.done("model.onnx", *FAST, "--samples", "5", "-v", "--keep", "linear")
    report = json.loads((command.folder / "model.w8a8.report.json").read_text())
    listed = [line.split(maxsplit=2) for line in result.out.split("\n\n")[1].splitlines()[1:]]
    assert listed == [[layer["name"], layer["op"], layer["reason"]] for layer in report["kept"]]
    assert len(listed) == 5
    assert result.err == ""


def test_verbose_lists_every_call_of_a_validation(capsys: pytest.CaptureFixture[str]) -> None:
    def call(trajectory: int, step: int, **sqnr: float) -> CallErrors:
        errors = {name: ErrorMeasure(value, 0.01) for name, value in sqnr.items()}
        return CallErrors(trajectory, step, 900.0 - step, errors)

    calls = (call(0, 0, quantization=31.0), call(1, 0, quantization=33.0))
    states = (call(0, 1, quantization=28.25, rounding_floor=40.0),)
    report = ValidationReport(
        models={"float": "f.onnx", "qdq": "q.onnx"},
        calibration="2 calls",
        calls=calls,
        free_run=FreeRunReport("1 trajectory", states, ()),
        skipped={},
        limits=(),
        warnings=(),
    )
    validate_summary.print_summary(report, verbose=False)
    short = capsys.readouterr().out
    validate_summary.print_summary(report, verbose=True)
    full = capsys.readouterr().out
    added = [line for line in full.splitlines() if line not in short.splitlines()]
    assert added == [
        "trajectory  step  timestep  quantization dB",
        "0           0     900       31.0",
        "1           0     900       33.0",
        "trajectory  step  timestep  quantization dB  rounding floor dB",
        "0           1     899       28.2             40.0",
    ]
    assert "timestep  calls  quantization dB\n900       2      32.0\n" in short


class TestProgress:
    def test_is_silent_without_a_terminal(self, command: Command) -> None:
        assert command.done("model.onnx", *FAST).err == ""

    def test_leaves_no_trace_on_a_terminal(self) -> None:
        stream = io.StringIO()
        progress = BarProgress(Console(file=stream, force_terminal=True, width=80))
        with progress.step("calibrate", 3) as advance:
            for _ in range(3):
                advance()
        with progress.step("write", None):
            pass
        text = stream.getvalue()
        assert "calibrate" in text
        assert "3/3" in text
        assert "remaining" in text
        assert "write" in text
        # Every line that was begun is gone up to and erased.
        assert text.count("\n") == text.count("\x1b[1A\x1b[2K")

    def test_goes_on_after_an_error(self) -> None:
        progress = BarProgress(Console(file=io.StringIO(), force_terminal=True))
        with pytest.raises(ZeroDivisionError), progress.step("calibrate", 3):
            _ = 1 / 0
        with progress.step("solve", 1) as advance:
            advance()
