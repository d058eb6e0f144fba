"""``python -m qvd_trt.tools.engine.compile_child PLAN ANSWER``: one build in its own process.

Reads a pickled ``BuildPlan`` and writes a pickled ``CompileAnswer``. A failure inside of TensorRT
may end the process; no answer is written then.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

from qvd_trt.tools.engine.build_plan import BuildPlan
from qvd_trt.tools.engine.compiler import CompileAnswer, StepError, compile_plan


def main(arguments: Sequence[str]) -> None:
    """Run the build that a file describes."""
    plan_file, answer_file = map(Path, arguments)
    plan: BuildPlan = pickle.loads(plan_file.read_bytes())
    try:
        answer = compile_plan(plan)
    except StepError as error:
        answer = CompileAnswer(failed=error.step, errors=error.errors)
    except Exception as error:  # the bindings raise what they like, a traceback helps nobody
        answer = CompileAnswer(failed="build", errors=(f"{type(error).__name__}: {error}",))
    answer_file.write_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
