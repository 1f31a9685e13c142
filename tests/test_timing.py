"""Times are medians of calls, operations are counted, rates are of this machine."""

from __future__ import annotations

import time

import torch

from worldflow.timing import count_flops, machine, matmul_rate, timed


def test_a_time_is_the_median_of_as_many_calls_as_fit() -> None:
    waits = iter([0.0, 0.0, 0.05, *[0.005] * 1000])
    found = timed(lambda: time.sleep(next(waits)), seconds=0.08, warm_up=2)
    assert 0.005 <= found.median < 0.04 and found.fastest <= found.median
    assert 5 <= found.calls <= 20
    assert timed(lambda: None, seconds=0, at_least=7).calls == 7


def test_operations_are_those_of_the_products() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert count_flops(lambda: (a @ b).relu()) == 2 * 3 * 5 * 7
    assert count_flops(lambda: torch.nn.functional.linear(a, torch.zeros(4, 5))) == 2 * 3 * 5 * 4


def test_a_rate_is_what_a_product_reaches() -> None:
    assert 1e8 < matmul_rate() < 1e16
    assert machine()["threads"] == torch.get_num_threads()
