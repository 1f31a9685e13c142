"""The choice of threads follows the clock, and the caller's number comes back."""

from __future__ import annotations

import pytest
import torch

from worldflow.threads import ThreadChoice


@pytest.fixture
def two_threads():  # noqa: ANN201
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def run(choice: ThreadChoice, clock: Clock, seconds: dict[int, float], pieces: int) -> list[int]:
    """Threads of each piece, where a piece takes `seconds` by its number of threads."""
    used = []
    for _ in range(pieces):
        with choice():
            used.append(torch.get_num_threads())
            clock.now += seconds[used[-1]]
        assert torch.get_num_threads() == 2
    return used


@pytest.mark.usefixtures("two_threads")
def test_takes_the_faster_and_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("worldflow.threads.time", clock)
    choice = ThreadChoice(trials=2, keep=10.0)
    assert run(choice, clock, {1: 1.0, 2: 4.0}, 6) == [2, 2, 1, 1, 1, 1]
    clock.now += 10.0
    assert run(choice, clock, {1: 1.0, 2: 0.5}, 6) == [2, 2, 1, 1, 2, 2]


@pytest.mark.usefixtures("two_threads")
def test_an_error_gives_the_number_back() -> None:
    choice = ThreadChoice()
    for _ in range(4):
        with pytest.raises(RuntimeError, match="boom"), choice():
            raise RuntimeError("boom")
        assert torch.get_num_threads() == 2
