"""A file for ONNX Runtime in a session of its defaults: what its code type costs.

    python -m benchmarks.plain_session --plan out/pandigits.w8a8.plan.json [--rounds 30]

Writes the shipped example by one plan with uint8 codes, as `--target ort` does, and with int8
codes, as the other targets have them. Both run in sessions without any option, in turn, on held-out
steps of the example: time, its median ratio round by round, the fused kernels, and the SQNR against
the same file with Q and DQ as written.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from benchmarks.pandigits_sampling import EXAMPLE
from qvd_trt.calibrators.sources.npz_files import read_npz
from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.metrics import sqnr
from qvd_trt.export.model_file import open_model, save_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.plan_json import load_plan
from qvd_trt.export.targets import TARGETS, CodeType, FloatType

Feeds = Mapping[str, AnyArray]

_FUSED = ("MatMulIntegerToFloat", "QGemm", "QLinearMatMul", "QLinearConv", "MatMulNBits")


@dataclass(slots=True)
class Form:
    """One file in its two sessions, and the seconds of every round."""

    path: Path
    plain: ort.InferenceSession
    kernels: Mapping[str, int]
    seconds: list[float] = field(default_factory=list)

    def run(self, feeds: Feeds) -> AnyArray:
        """The output of the plain session; its time is kept."""
        start = time.perf_counter()
        (output,) = self.plain.run(None, dict(feeds))
        self.seconds.append(time.perf_counter() - start)
        return np.asarray(output)

    def error(self, steps: list[Feeds]) -> float:
        """Mean SQNR in dB of the plain session against Q and DQ as written."""
        faithful = open_session(self.path, faithful_qdq=True)
        pairs = ((faithful.run(None, dict(f))[0], self.plain.run(None, dict(f))[0]) for f in steps)
        return float(np.mean([sqnr(*pair) for pair in pairs]))


def open_form(path: Path) -> Form:
    """Open a file by ONNX Runtime's defaults and count the integer kernels that it fuses."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = ir.load(options.optimized_model_filepath).graph
    kernels = Counter(node.op_type for node in graph if node.op_type in _FUSED)
    plain = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return Form(path, plain, kernels)


def held_out_steps() -> list[Feeds]:
    """The calls of the example's held-out trajectory."""
    arrays = read_npz(EXAMPLE / "heldout" / "trajectory_00.npz")
    count = len(arrays["timestep"])
    return [
        {name: array[i] if len(array) == count else array for name, array in arrays.items()}
        for i in range(count)
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plan", type=Path, required=True, help="of the example, any target")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    model, plan = open_model(EXAMPLE / "model.onnx"), load_plan(arguments.plan)
    steps = held_out_steps()
    with tempfile.TemporaryDirectory(prefix="qvd-") as folder:
        forms = {}
        for code_type in CodeType:
            path = Path(folder) / f"{code_type.value}.onnx"
            target = replace(TARGETS["ort"], code_type=code_type)
            save_model(apply_plan(model, plan, ApplyOptions(target, FloatType.FP32)), path)
            forms[code_type] = open_form(path)
        for form in forms.values():
            form.run(steps[0])
            form.seconds.clear()
        for index in range(arguments.rounds):
            order = list(forms.values())
            for form in order if index % 2 else order[::-1]:
                form.run(steps[index % len(steps)])
        print("| codes | median ms | against int8 | fused | SQNR against the file dB |")
        print("|---|---|---|---|---|")
        base = np.array(forms[CodeType.INT8].seconds)
        for code_type, form in forms.items():
            taken = np.array(form.seconds)
            kernels = ", ".join(f"{count} {op}" for op, count in form.kernels.items())
            print(
                f"| {code_type.value} | {1e3 * np.median(taken):.0f} | "
                f"{np.median(taken / base):.3f} | {kernels} | {form.error(steps):.1f} |"
            )


if __name__ == "__main__":
    main()
