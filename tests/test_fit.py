"""The training loop: large gradients are scaled, single outliers left out, and neither stops a fit for good."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from worldflow.fit import FLOW, FitState, fit
from worldflow.log import NoLog


class Slope(nn.Module):
    """One number, and a loss whose gradient is what it is told, step by step."""

    def __init__(self, slopes: list[float]) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))
        self.slopes = slopes
        self.before: list[float] = []

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        self.before.append(float(self.number.detach()))
        loss = self.slopes[len(self.before) - 1] * self.number
        return loss, {FLOW.headline: loss.detach()}


def fitted(slopes: list[float], **options: Any) -> tuple[list[float], FitState]:
    """The number before each step and after the last, and the state at the end."""
    module, states = Slope(slopes), []
    fit(
        module,
        module.loss,
        NoLog(),
        stage=FLOW,
        minutes=None,
        learning_rate=0.1,
        weight_decay=0.0,
        clip_norm=1.0,
        items=1,
        device=torch.device("cpu"),
        look=None,
        look_every=math.inf,
        save=states.append,
        save_every=math.inf,
        progress=False,
        **({"steps": len(slopes), "start": None} | options),
    )
    return [*module.before, float(module.number.detach())], states[-1]


def test_an_outlier_is_not_taken() -> None:
    numbers, _ = fitted([1.0] * 5 + [50.0, math.nan, 1.0, 9.0, 1.0])
    taken = [a != b for a, b in pairwise(numbers)]
    assert taken == [True] * 5 + [False, False, True, True, True]


def test_gradients_that_stay_large_do_not_stop_a_fit() -> None:
    # Twelve times the clip from the first step on: left out until it is the usual.
    numbers, state = fitted([12.0] * 10)
    taken = [a != b for a, b in pairwise(numbers)]
    assert not taken[0]
    assert all(taken[1:])
    assert 6 < state.usual_norm <= 12


def test_what_is_usual_is_kept_for_later() -> None:
    _, state = fitted([12.0] * 10)
    numbers, _ = fitted([40.0] * 11, steps=11, start=state)
    assert numbers[0] != numbers[1]  # 40 is over ten times the clip, and not over ten times the usual
