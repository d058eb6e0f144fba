"""The closing table of ``qvd-build``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.filesize import decimal

from qvd_trt.tools.cli.display import SummaryConsole, print_labelled, print_table
from qvd_trt.tools.engine.build_engine import BuildReport
from qvd_trt.tools.engine.node_precision import READS_CODEBOOK, NodePrecision
from qvd_trt.tools.engine.tensorrt_install import parse_version, product_label

LOST_SHOWN = 5


def print_summary(report: BuildReport, *, verbose: bool) -> None:
    """Print how the engine was built and what runs in INT8.

    Lines are not wrapped, so that they can be searched in a log.
    """
    console = SummaryConsole()
    print_labelled(console, _rows(report))
    if verbose:
        nodes = [("node", "operator", "runs in", "reason")]
        nodes += [(n.name, n.op, n.runs, n.reason or "") for n in report.nodes]
        layers = [("engine layer", "kind", "reads", "constants", "writes")]
        layers += [
            (x.name, x.kind, ",".join(x.inputs), ",".join(x.constants), ",".join(x.outputs))
            for x in report.layers
        ]
        for table in (nodes, layers):
            console.print()
            print_table(console, table)


def _rows(report: BuildReport) -> list[tuple[str, list[str]]]:
    """Label and lines of every row."""
    rows = [("built with", [_runtime(report)])]
    if report.shapes:
        rows.append(("shapes", [" ".join(report.shapes)]))
    if report.plugin is not None:
        how = "carried by the engine" if report.plugin_embedded else "to be loaded with the engine"
        rows.append(("plugin", [f"{report.plugin}, {how}"]))
    if report.nodes:
        rows.append(("INT8", [_int8(report)]))
        rows.append(("float", _float(report)))
    if report.layers:
        rows.append(("layers", [_layers(report)]))
    rows.append(("engine", [f"{decimal(report.engine_bytes)}, built in {report.seconds:.1f} s"]))
    if report.trtexec is not None:
        rows.append(("trtexec", [report.trtexec]))
    rows.append(("written", list(report.written)))
    return rows


def _runtime(report: BuildReport) -> str:
    label = product_label(report.runtime, parse_version(report.version))
    typed = "stronglyTyped" in report.flags
    types = "strongly typed" if typed else " ".join(f"--{flag}" for flag in report.flags)
    parts = [label, types or "float32"]
    if report.implicit:
        parts.append("ranges for Q/DQ")
    if report.compute_capabilities:
        names = (text.replace(".", "") for text in report.compute_capabilities)
        parts.append("for " + " ".join(f"SM{name}" for name in names))
    return ", ".join(parts)


def _int8(report: BuildReport) -> str:
    share = report.int8_nodes / len(report.nodes)
    asked = sum(node.quantized for node in report.nodes)
    return (
        f"{report.int8_nodes} of {len(report.nodes)} Conv, ConvTranspose, MatMul and Gemm nodes "
        f"with weights ({share:.0%}); the file quantizes {asked}"
    )


def _float(report: BuildReport) -> list[str]:
    """What is not INT8, the surprising first."""
    lines = [f"{node.name} ({node.op}): {node.reason}" for node in report.lost_nodes]
    if rest := len(lines) - LOST_SHOWN:
        lines = [*lines[:LOST_SHOWN], *([f"{rest} more, listed by -v"] if rest > 0 else [])]
    unknown = [node for node in report.nodes if node.runs == "unknown"]
    plain = [node for node in report.nodes if node.runs == "float" and not node.quantized]
    for nodes, text in (
        (unknown, "quantized in the file; the engine does not tell in which type they run"),
        ([n for n in plain if n.reason == READS_CODEBOOK], "behind the HTDQ codebook, by design"),
        ([n for n in plain if n.reason != READS_CODEBOOK], "not quantized in the file"),
    ):
        lines += [f"{_operators(nodes)} {text}"] if nodes else []
    return lines or ["none"]


def _operators(nodes: Sequence[NodePrecision]) -> str:
    """How many of each operator, such as ``3 Conv, 1 Gemm``."""
    ops = Counter(node.op for node in nodes)
    return ", ".join(f"{count} {op}" for op, count in ops.most_common())


def _layers(report: BuildReport) -> str:
    counts = report.counts
    parts = [
        f"{counts.all} in the engine",
        f"{counts.int8_products} INT8 products",
        f"{counts.copies} reformat or copy",
        f"{counts.htdq_plugins} HTDQ plugin",
    ]
    if counts.opaque:
        parts.append(f"{counts.opaque} fused blocks without a list of kernels")
    return ", ".join(parts)
