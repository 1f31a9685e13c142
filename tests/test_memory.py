"""The running mean: plain at first, exponential later, the same in any pieces, and right after an exchange."""

from __future__ import annotations

import torch
from torch import Tensor

from worldflow.memory import exchange_last, running_means

MEMORY = 4


def frames(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def means(seen: Tensor) -> Tensor:
    B = len(seen)
    return running_means(seen, seen.new_zeros(B, 2, 3), count=torch.zeros(B, dtype=torch.int64), memory=MEMORY)


def test_it_is_the_plain_mean_until_the_memory_is_full_and_exponential_after() -> None:
    seen = frames(2, 9)
    found = means(seen)
    assert found.shape == (2, 10, 2, 3)
    for n in range(1, MEMORY + 1):
        torch.testing.assert_close(found[:, n], seen[:, :n].mean(1), rtol=1e-12, atol=1e-12)
    for n in range(MEMORY + 1, 10):  # (1 - 1/4)^k of what was known k frames ago is left
        left = [(1 - 1 / MEMORY) ** (n - k) / MEMORY * seen[:, k - 1] for k in range(MEMORY + 1, n + 1)]
        expected = (1 - 1 / MEMORY) ** (n - MEMORY) * seen[:, :MEMORY].mean(1) + sum(left)
        torch.testing.assert_close(found[:, n], expected, rtol=1e-12, atol=1e-12)


def test_rows_of_different_ages_go_on_from_where_they_are() -> None:
    seen = frames(2, 9)
    whole = means(seen)
    ages = torch.tensor([2, 5])
    start = torch.stack((whole[0, 2], whole[1, 5]))
    rest = torch.stack((seen[0, 2:6], seen[1, 5:9]))
    found = running_means(rest, start, count=ages, memory=MEMORY)
    torch.testing.assert_close(found, torch.stack((whole[0, 2:7], whole[1, 5:])), rtol=1e-12, atol=1e-12)


def test_the_last_frame_can_be_exchanged() -> None:
    seen, other = frames(1, 7), frames(2, 7)[1:]
    for n in (1, 3, MEMORY, 7):
        changed = torch.cat((seen[:, : n - 1], other[:, n - 1 : n]), dim=1)
        count = torch.tensor([n])
        found = exchange_last(means(seen[:, :n])[:, -1], seen[:, n - 1], other[:, n - 1], count=count, memory=MEMORY)
        torch.testing.assert_close(found, means(changed)[:, -1], rtol=1e-12, atol=1e-12)
