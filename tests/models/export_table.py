"""The table of docs/exporting.md: which diffusers classes export, and at which shapes it was shown.

python -m tests.models.export_table            # export all and rewrite the table
python -m tests.models.export_table ltx mochi  # export these, keep the other rows
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from qvd_trt.export.from_torch import ExportError, ExportReport, export_denoiser
from tests.models.architectures import Denoiser
from tests.models.video_classes import NOT_DYNAMIC, VIDEO_CLASSES

PAGE = Path(__file__).parents[2] / "docs" / "exporting.md"
_HEAD = "| class | exports | dynamic | checked at | fixed, and why |\n|---|---|---|---|---|\n"


def export(denoiser: Denoiser, path: Path) -> ExportReport:
    """Export and check at every input; raises ExportError as `export_denoiser` does."""
    return export_denoiser(
        denoiser.module,
        denoiser.example_inputs,
        denoiser.dynamic_dims,
        path,
        output_names=denoiser.output_names,
        verify_inputs=denoiser.verify_inputs,
        tolerance=1e-4,
    )


def row(name: str) -> str:
    """Export the class `name` now; its line of the table."""
    denoiser = VIDEO_CLASSES[name]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export(denoiser, Path(folder) / "model.onnx")
        except ExportError as error:
            reason = str(error).split(": ", 1)[-1].replace("|", "\\|")
            return f"| {denoiser.name} | no | | | {reason} |"
    symbols = list(
        dict.fromkeys(s for axes in denoiser.dynamic_dims.values() for s in axes.values())
    )
    latent = next(key for key in denoiser.example_inputs if key in ("sample", "hidden_states"))
    shapes = ", ".join("x".join(map(str, check.shapes[latent])) for check in report.checks)
    return (
        f"| {denoiser.name} | yes | {', '.join(symbols)} | {shapes} | {NOT_DYNAMIC.get(name, '')} |"
    )


def rows(page: str) -> dict[str, str]:
    """The table's lines by class."""
    lines = page[page.index(_HEAD) + len(_HEAD) :].split("\n\n")[0].splitlines()
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def main() -> None:
    """Export what the command line names and write the table."""
    parser = argparse.ArgumentParser(description="Rewrite the table of docs/exporting.md.")
    parser.add_argument("names", nargs="*", choices=[[], *VIDEO_CLASSES], default=[])
    names = parser.parse_args().names or list(VIDEO_CLASSES)
    for name in names:
        line = row(name)
        print(line, flush=True)
        page = PAGE.read_text()  # anew for each class, as several of these may run
        table = rows(page)
        old = "\n".join(table.values())
        table[line.split(" | ")[0].removeprefix("| ")] = line
        PAGE.write_text(page.replace(_HEAD + old, _HEAD + "\n".join(table.values())))


if __name__ == "__main__":
    main()
