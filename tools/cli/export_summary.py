"""The closing table of ``qvd-export``."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.filesize import decimal

from qvd_trt.tools.calibrate_shard import ShardReport
from qvd_trt.tools.cli.display import SummaryConsole, print_labelled, print_table
from qvd_trt.tools.quantize_report import LayerNames, QuantizationReport

REASONS_SHOWN = 8


def print_summary(report: QuantizationReport, *, verbose: bool) -> None:
    """Print what was quantized, what was kept and why, and what it cost.

    Lines are wrapped on a terminal only, so that they can be searched in a log.
    """
    console = SummaryConsole()
    print_labelled(console, _rows(report), wrap=True)
    if verbose:
        _print_kept(console, report)
        print_layers(report.layers)


def print_shard(report: ShardReport, *, verbose: bool) -> None:
    """Print what a shard holds and what comes next."""
    calls = f"{report.samples} calls of {report.calibration}"
    if report.held_out:
        calls += f", {report.held_out} held out"
    merge = f"qvd-export {shlex.quote(report.model)} --merge-stats"
    print_labelled(
        SummaryConsole(),
        [
            ("shard", [report.shard]),
            ("calibrated", [calls]),
            ("written", list(report.written) or ["nothing"]),
            ("next", [f"when all shards are there: {merge} {shlex.quote(report.stats)} ..."]),
        ],
        wrap=True,
    )


def _rows(report: QuantizationReport) -> list[tuple[str, list[str]]]:
    """Label and lines of every row."""
    rows = [
        ("quantized", [_quantized(report)]),
        ("target", [f"{report.target}, {report.dtype}"]),
        ("calibration", [report.calibration]),
        ("kept float", _kept(report)),
    ]
    if report.int8_share is not None:
        share = report.int8_share
        line = (
            f"{share.eligible:.1%} of the MACs outside first and last layers and time path, "
            f"{share.all_layers:.1%} of all"
        )
        rows.append(("INT8 share", [line]))
    temporal = [
        f"{site.tensor}: {site.quantizer}, {_count(site.layers, 'layer')}, "
        f"TDScore {site.td_score_before:.3f} (uniform) -> {site.td_score_after:.3f}"
        for site in report.temporal
    ]
    if temporal:
        rows.append(("temporal", temporal))
    rows.append(
        ("file size", [f"{decimal(report.float_bytes)} -> {decimal(report.quantized_bytes)}"])
    )
    rows.append(("output SQNR", [_sqnr(report)]))
    if report.weakest:
        weakest = report.weakest[0]
        rows.append(("weakest layer", [f"{weakest.name}: {weakest.sqnr:.1f} dB"]))
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    rows.append(("time", [times]))
    rows.append(("written", list(report.written)))
    return rows


def _quantized(report: QuantizationReport) -> str:
    if not report.quantized_layers:
        return "nothing: the float model, written for the target"
    parts = [
        f"{_count(report.dense_sites, 'site')} ({report.shifted_sites} shifted, "
        f"{report.smoothed_sites} scaled)"
    ]
    if report.temporal:
        parts.append(_count(len(report.temporal), "temporal site"))
    layers = _count(report.quantized_layers, "layer")
    return f"{report.bits} by {report.algorithm}: {layers} at {' and '.join(parts)}"


def _kept(report: QuantizationReport) -> list[str]:
    counts = Counter(layer.reason for layer in report.kept).most_common()
    lines = [f"{_count(count, 'layer')}: {reason}" for reason, count in counts[:REASONS_SHOWN]]
    if rest := sum(count for _, count in counts[REASONS_SHOWN:]):
        lines.append(f"{_count(rest, 'layer')}: other reasons, listed by -v")
    return lines or ["none"]


def _sqnr(report: QuantizationReport) -> str:
    mean = report.mean_sqnr()
    if mean is None:
        return "not measured (no held-out calls)"
    worst = min(report.held_out, key=lambda score: score.sqnr)
    return (
        f"{mean:.1f} dB mean over {_count(len(report.held_out), 'held-out step')}, "
        f"worst {worst.sqnr:.1f} dB at timestep {worst.timestep:g}"
    )


def _print_kept(console: Console, report: QuantizationReport) -> None:
    cells = [("kept float", "operator", "reason")]
    cells += [(layer.name, layer.op, layer.reason) for layer in report.kept]
    console.print()
    print_table(console, cells)


def print_layers(layers: Sequence[LayerNames]) -> None:
    """Print by what names ``--keep`` finds each layer."""
    cells = [("node", "operator", "torch module", "weight")]
    cells += [(layer.name, layer.op, layer.module, layer.weight) for layer in layers]
    console = SummaryConsole()
    console.print()
    print_table(console, cells)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
