from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from qvd_trt.calibrators import parallel_map as module
from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.parallel_map import parallel_map
from tests.calibrators.made_up_sites import linear, scattered, site_problem


def test_results_are_in_the_order_of_the_items() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.001 * (5 - item))
        return item * item

    assert parallel_map(work, range(5), lambda: done.append(len(done))) == [0, 1, 4, 9, 16]
    assert done == [0, 1, 2, 3, 4]


def test_nothing_to_do() -> None:
    assert parallel_map(str, []) == []


def test_an_error_ends_it_before_all_items_are_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cores", lambda: 2)
    begun: list[int] = []
    gate = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            gate.set()
            raise KeyError(item)
        gate.wait()
        time.sleep(0.05)

    with pytest.raises(KeyError):
        parallel_map(work, range(50))
    assert len(begun) < 10


def test_linear_algebra_has_one_thread_inside_and_its_own_outside() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))
    before = [pool["num_threads"] for pool in threadpool_info()]
    inside = parallel_map(lambda _: [pool["num_threads"] for pool in threadpool_info()], [0])[0]
    assert inside
    assert set(inside) == {1}
    assert [pool["num_threads"] for pool in threadpool_info()] == before


def test_numbers_do_not_depend_on_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [
        site_problem(scattered(seed, 96, 300), [linear("a", 96, 200)], seed=seed)
        for seed in range(4)
    ]
    plans = []
    for cores in (1, 2, 4):
        monkeypatch.setattr(module, "_cores", lambda cores=cores: cores)
        plans.append(parallel_map(ALGORITHMS["qvd"].solve, problems))
    for other in plans[1:]:
        for expected, found in zip(plans[0], other, strict=True):
            assert expected.activation is not None
            assert found.activation is not None
            assert expected.activation.scale == found.activation.scale
            for mine, theirs in zip(expected.layers, found.layers, strict=True):
                assert mine.weight is not None
                assert theirs.weight is not None
                np.testing.assert_array_equal(mine.weight.scales, theirs.weight.scales)
