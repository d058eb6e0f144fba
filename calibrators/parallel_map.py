"""Independent work on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

MAX_WORKERS = 8
"""Each worker holds copies of the weights that it works on."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    progress: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Results in the order of the items, each computed on one core.

    numpy leaves the interpreter's lock while it works, so threads suffice. Linear algebra gets one
    thread each: its own threads wait for each other on a busy machine, and the number of cores
    would change the last bits of the results.

    Args:
        function: Called once per item, in any order and in several threads.
        items: What to work on.
        progress: Called in this thread after each result.

    Raises:
        Exception: the first one that ``function`` raises; items that were not begun are left out.
    """
    results = []
    workers = min(_cores(), MAX_WORKERS)
    # In the workers as well: OpenMP's limit is one of the thread that sets it.
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(workers, "solve", threadpool_limits, (1,)) as pool,
    ):
        try:
            for result in pool.map(function, items):
                results.append(result)
                progress()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
