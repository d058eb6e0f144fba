"""The closing tables of ``qvd-validate``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.text import Text

from qvd_trt.tools.cli.display import SummaryConsole, print_table
from qvd_trt.tools.validation.report import (
    COMPARISONS,
    CallErrors,
    FreeRunReport,
    ValidationReport,
    summarize,
)

_MEANINGS = {entry.name: entry.meaning for entry in COMPARISONS}


def print_summary(report: ValidationReport, *, verbose: bool) -> None:
    """Print what was compared, the errors, and where along the trajectory they are.

    ``verbose`` adds every call, and every state of a free run.
    """
    console = SummaryConsole()
    rows = [[name, file] for name, file in report.models.items()]
    if report.calibration is not None:
        rows.append(["calls", report.calibration])
    rows += [["not measured", f"{_label(name)}: {why}"] for name, why in report.skipped.items()]
    print_table(console, rows, header=False)
    if report.calls:
        _print_errors(console, "every model on the recorded inputs", report.calls)
        _print_steps(console, report.calls)
        if verbose:
            _print_calls(console, report.calls)
    if report.free_run is not None:
        _print_free_run(console, report.free_run, verbose=verbose)
    for check in report.limits:
        verdict = "kept" if check.met else "NOT kept"
        line = f"{check.option} {check.limit:g} {verdict}: {check.quantity} is {check.value:.4g}"
        console.print(Text(line, "bold"), soft_wrap=True)


def _print_errors(console: Console, title: str, calls: Sequence[CallErrors]) -> None:
    rows = [[title, "SQNR mean", "worst", "at timestep", "relative RMS mean", "worst", ""]]
    rows += [
        [
            _label(name),
            f"{entry.mean_sqnr:.1f} dB",
            f"{entry.worst_sqnr:.1f} dB",
            f"{entry.worst_timestep:g}",
            f"{entry.mean_relative_rms:.3%}",
            f"{entry.worst_relative_rms:.3%}",
            _MEANINGS[name],
        ]
        for name, entry in summarize(calls).items()
    ]
    console.print()
    print_table(console, rows)


def _print_steps(console: Console, calls: Sequence[CallErrors]) -> None:
    """Mean SQNR of the calls at each timestep, in the order of denoising."""
    names = _compared(calls)
    rows = [["timestep", "calls", *(f"{_label(name)} dB" for name in names)]]
    # Samplers go down; the sort also orders calls of several trajectories.
    for timestep in sorted({call.timestep for call in calls}, reverse=True):
        here = [call for call in calls if call.timestep == timestep]
        means = [fmean(call.errors[name].sqnr for call in here) for name in names]
        rows.append([f"{timestep:g}", str(len(here)), *(f"{mean:.1f}" for mean in means)])
    console.print()
    print_table(console, rows)


def _print_calls(console: Console, calls: Sequence[CallErrors]) -> None:
    """Each call, or each state, by itself."""
    names = _compared(calls)
    rows = [["trajectory", "step", "timestep", *(f"{_label(name)} dB" for name in names)]]
    for call in calls:
        measured = (
            f"{call.errors[name].sqnr:.1f}" if name in call.errors else "" for name in names
        )
        rows.append([str(call.trajectory), str(call.step), f"{call.timestep:g}", *measured])
    console.print()
    print_table(console, rows)


def _compared(calls: Sequence[CallErrors]) -> list[str]:
    """Comparisons that at least one call has, in the report's order."""
    return [name for name in _MEANINGS if any(name in call.errors for call in calls)]


def _print_free_run(console: Console, report: FreeRunReport, *, verbose: bool) -> None:
    console.print()
    console.print(Text(f"free run: {report.sampling}", "bold"), soft_wrap=True)
    _print_errors(console, "states after each step", report.states)
    _print_steps(console, report.states)
    if verbose:
        _print_calls(console, report.states)
    rows = [["final latent", "PSNR mean", "worst", "(data range: that of the reference)"]]
    for name in _MEANINGS:
        if values := [final.psnr[name] for final in report.finals if name in final.psnr]:
            rows.append([_label(name), f"{fmean(values):.1f} dB", f"{min(values):.1f} dB", ""])
    console.print()
    print_table(console, rows)


def _label(name: str) -> str:
    return name.replace("_", " ")
