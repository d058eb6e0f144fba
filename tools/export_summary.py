"""The closing table of ``qvd-export``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qvd_trt.export.report import QuantizationReport

MEGABYTE = 1_000_000


def print_summary(report: QuantizationReport, report_file: Path, *, verbose: bool) -> None:
    """Print what was quantized, what was kept and why, and what it cost."""
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(report):
        table.add_row(name, escape(value))
    table.add_row("written", escape(f"{report.output}\n{report.plan}\n{report_file}"))
    console.print(table)
    if verbose:
        _print_kept(console, report)


def _rows(report: QuantizationReport) -> list[tuple[str, str]]:
    rows = [
        ("quantized", _quantized(report)),
        ("calibration", report.calibration),
        ("kept float", _kept(report)),
    ]
    if report.int8_share is not None:
        share = report.int8_share
        rows.append(
            (
                "INT8 share",
                f"{share.eligible:.2%} of the MACs outside first and last layers and time path, "
                f"{share.all_layers:.2%} of all",
            )
        )
    rows += [
        (
            "temporal site",
            f"{site.tensor}: {site.quantizer}, {site.layers} layers, TDScore "
            f"{site.td_score_before:.3f} (uniform) -> {site.td_score_after:.3f}",
        )
        for site in report.temporal
    ]
    rows.append(
        (
            "weights",
            f"{report.float_bytes / MEGABYTE:.1f} MB -> {report.quantized_bytes / MEGABYTE:.1f} MB",
        )
    )
    rows.append(("output SQNR", _sqnr(report)))
    if report.weakest:
        weakest = report.weakest[0]
        rows.append(("weakest layer", f"{weakest.name}: {weakest.sqnr:.1f} dB"))
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    rows.append(("time", steps))
    return rows


def _quantized(report: QuantizationReport) -> str:
    return (
        f"{report.bits} by {report.algorithm}: {report.quantized_layers} layers at "
        f"{report.dense_sites} sites ({report.shifted_sites} shifted, {report.smoothed_sites} "
        f"scaled) and {len(report.temporal)} temporal sites; target {report.target}, "
        f"{report.dtype}"
    )


def _kept(report: QuantizationReport) -> str:
    if not report.kept:
        return "none"
    counts = Counter(layer.reason for layer in report.kept)
    return "; ".join(f"{count} ({reason})" for reason, count in counts.items())


def _sqnr(report: QuantizationReport) -> str:
    mean = report.mean_sqnr()
    if mean is None:
        return "not measured (no held-out calls)"
    worst = min(report.held_out, key=lambda score: score.sqnr)
    return (
        f"{mean:.1f} dB mean over {len(report.held_out)} held-out steps, worst {worst.sqnr:.1f} dB "
        f"at timestep {worst.timestep:g}"
    )


def _print_kept(console: Console, report: QuantizationReport) -> None:
    table = Table("layer", "operator", "why it is float", title="kept float", title_justify="left")
    for layer in report.kept:
        table.add_row(escape(layer.name), layer.op, escape(layer.reason))
    console.print(table)
