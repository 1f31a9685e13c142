"""The training loop, one for every network of the project.

Muon (Jordan et al., 2024) for the transformers' matrices, AdamW for everything else; warm-up, then a cosine to a
hundredth; gradients clipped; bf16 products where the hardware has them. Progress is counted in steps or in minutes, so
that recipes can be compared at equal time.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from worldflow.attention import Mixing
from worldflow.captured import Captured, captured_or_none
from worldflow.muon import Muon, has_bfloat16
from worldflow.team import ALONE, Team
from worldflow.threads import ThreadChoice

__all__ = ["CODEC", "FLOW", "DrawnLoss", "FitState", "Log", "Stage", "fit"]

MUON_RATE = 20.0
"""Learning rate of Muon's orthogonal updates, as a multiple of AdamW's."""
WARM_UP = 50
"""Steps over which the learning rate rises."""
LOG_EVERY = 20
"""Steps between two records of the log."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained, and the metrics that tell of it."""

    name: str
    headline: str
    rate: str


CODEC = Stage(name="codec", headline="codec/psnr", rate="codec/frames_per_second")
FLOW = Stage(name="flow", headline="flow/above_floor", rate="flow/transitions_per_second")


class Log(Protocol):
    """Where metrics go; `worldflow.log.TrainLog` is one."""

    def write(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Take the metrics of one moment."""
        ...


Losses = tuple[Tensor, dict[str, Tensor]]
"""A loss, and metrics, all scalars."""


@dataclass(frozen=True)
class DrawnLoss:
    """The loss of a batch in two parts: what is drawn, and a function of it without anything random.

    So it can be recorded and replayed on a GPU (`worldflow.captured`).
    """

    draw: Callable[[], dict[str, Tensor]]
    loss: Callable[[Mapping[str, Tensor]], Losses]

    def __call__(self) -> Losses:
        """The loss of a new batch."""
        return self.loss(self.draw())


@dataclass(frozen=True, kw_only=True)
class FitState:
    """How far a fit has come: what it needs, beside the weights, to go on."""

    step: int
    seconds: float
    optimizers: list[dict[str, Any]]
    usual_norm: float
    """Running mean of the gradient's norm, by which one that is out of line is told."""


def fit(
    module: nn.Module,
    batch_loss: Callable[[], Losses],
    log: Log,
    *,
    stage: Stage,
    steps: int,
    minutes: float | None,
    learning_rate: float,
    weight_decay: float,
    clip_norm: float,
    items: int,
    device: torch.device,
    start: FitState | None,
    look: Callable[[], dict[str, float]] | None,
    look_every: float,
    save: Callable[[FitState], None],
    save_every: float,
    progress: bool,
    clock: Callable[[], float] = time.monotonic,
    team: Team = ALONE,
) -> None:
    """Minimize a loss.

    Args:
        module: Whose parameters to fit, those that require a gradient.
        batch_loss: Draws a batch; returns its loss and metrics, all scalars. On a GPU a `DrawnLoss` is recorded once
            and replayed.
        log: Where metrics go.
        stage: What this is.
        steps: Steps to take, unless `minutes` is given.
        minutes: Minutes to take.
        learning_rate: AdamW's peak; Muon's is `MUON_RATE` times it.
        weight_decay: Of matrices.
        clip_norm: Gradients are scaled down to this norm; a step whose norm is not finite, or over ten times both this
            and what it was of late, is not taken.
        items: Frames or transitions of a batch, for the throughput; of this process, where there are more.
        device: Where the module is.
        start: Where an earlier fit stopped.
        look: Called every `look_every` minutes and at the end; returns metrics to log.
        look_every: Minutes.
        save: Called every `save_every` minutes and at the end, with what is needed to go on.
        save_every: Minutes.
        progress: Show a progress bar.
        clock: Tells seconds, from any beginning.
        team: The processes that take each step together, all with these arguments; `look` and `save` are called in all
            of them. On a GPU nothing is recorded then.
    """
    optimizers = _optimizers(module, learning_rate=learning_rate, weight_decay=weight_decay, device=device)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    first, spent, usual = 0, 0.0, clip_norm
    if start is not None:
        first, spent, usual = start.step, start.seconds, start.usual_norm
        for optimizer, saved in zip(optimizers, start.optimizers, strict=True):
            optimizer.load_state_dict(saved)
            _settle_on(device, optimizer)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    begin, step = clock() - spent, first
    next_look, next_save = spent + 60 * look_every, spent + 60 * save_every

    # The number of threads changes the last bits of sums: a fit of so many steps stays as it is, so that it can be
    # repeated; one of so many minutes never could.
    threads = None if minutes is None or device.type != "cpu" or team.size > 1 else ThreadChoice()

    taking = _Steps(module, optimizers, batch_loss, clip_norm=clip_norm, device=device, team=team)

    def seconds() -> float:
        return clock() - begin

    def state() -> FitState:
        states = [optimizer.state_dict() for optimizer in optimizers]
        for group in itertools.chain.from_iterable(saved["param_groups"] for saved in states):
            group["lr"] = float(group["lr"])  # not where it was, but what
        return FitState(step=step, seconds=seconds(), optimizers=states, usual_norm=usual)

    bar = tqdm(
        total=steps if minutes is None else 60 * minutes,
        initial=min(first, steps) if minutes is None else min(spent, 60 * minutes),
        desc=stage.name,
        disable=not progress,
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed} left {remaining}{postfix}",
    )
    now = spent  # by the leader's clock: all must look, save and end at the same step
    with bar, _kept_when_interrupted(lambda: save(state())):
        for step in itertools.count(first):
            done = step / steps if minutes is None else now / (60 * minutes)
            if done >= 1:
                break
            for group in groups:
                _set_rate(group, _schedule(step, done))
            with nullcontext() if threads is None else threads():
                metrics, measured = taking.gradients()
                norm = float(measured)
                most = 10 * max(usual, clip_norm)
                if math.isfinite(norm):
                    if norm <= most:
                        taking.update()
                    # A step that is not taken counts, too: gradients that stay large must not stop a fit for good.
                    usual += 0.1 * (min(norm, most) - usual)
            now = team.told(seconds())
            bar.update(1 if minutes is None else min(now, 60 * minutes) - bar.n)
            if step % LOG_EVERY == 0:
                shown = {name: float(value) for name, value in metrics.items()}
                shown[stage.rate] = team.size * items * (step + 1 - first) / max(now - spent, 1e-9)
                shown[f"{stage.name}/gradient_norm"] = norm
                log.write(step, now, shown)
                name = stage.headline.split("/")[1].replace("_", " ")
                bar.set_postfix_str(f"{name} {shown[stage.headline]:.3f}, {shown[stage.rate]:.0f}/s")
            if look is not None and now >= next_look:
                log.write(step, now, look())
                now = team.told(seconds())
                next_look = now + 60 * look_every
            if now >= next_save:
                step += 1  # this one is done
                save(state())
                now = team.told(seconds())
                next_save = now + 60 * save_every
    if look is not None:
        log.write(step, seconds(), look())
    save(state())


class _Steps:
    """Steps of a fit: gradients of a new batch's loss, clipped, and the optimizers' use of them.

    On a GPU both are recorded where the loss is a `DrawnLoss`, the optimizers' at the second step, when the first has
    made what they keep. Gradients then stay in one place, which the recorded step of the optimizers reads.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        batch_loss: Callable[[], Losses],
        *,
        clip_norm: float,
        device: torch.device,
        team: Team,
    ) -> None:
        self._module, self._optimizers, self._clip_norm, self._device = module, optimizers, clip_norm, device
        self._parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        self._batch_loss, self._team = batch_loss, team
        self._is_recorded = device.type == "cuda" and isinstance(batch_loss, DrawnLoss) and team.size == 1
        self._gradients: Captured[tuple[dict[str, Tensor], Tensor]] | None = None
        self._update: Captured[None] | None = None
        self._taken = 0

    def gradients(self) -> tuple[dict[str, Tensor], Tensor]:
        """Leave them in the parameters; returns metrics, and the gradients' norm before it was clipped."""
        batch_loss = self._batch_loss
        if not (self._is_recorded and isinstance(batch_loss, DrawnLoss)):
            return self._of(batch_loss)
        drawn = batch_loss.draw()
        if self._gradients is None:
            self._gradients = captured_or_none(
                lambda given: self._of(lambda: batch_loss.loss(given)), drawn, what="the loss of a batch"
            )
            if self._gradients is None:
                self._is_recorded = False
                return self._of(lambda: batch_loss.loss(drawn))
        return self._gradients(drawn)

    def update(self) -> None:
        """Take a step along the gradients."""
        if self._taken == 1 and self._is_recorded:
            self._update = captured_or_none(lambda _: self._step(), {}, what="the optimizers' step", warm_up=0)
        if self._update is None:
            self._step()
        else:
            self._update({})
        self._taken += 1

    def _of(self, batch_loss: Callable[[], Losses]) -> tuple[dict[str, Tensor], Tensor]:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=has_bfloat16(self._device)):
            loss, metrics = batch_loss()
        self._module.zero_grad(set_to_none=True)
        loss.backward()
        self._team.average_gradients(self._parameters)
        return metrics, nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)

    def _step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()


@contextmanager
def _kept_when_interrupted(save: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        save()
        raise KeyboardInterrupt("training stopped; what it has learned is kept: resume to go on") from None


def _schedule(step: int, done: float) -> float:
    warm_up = min(1.0, (step + 1) / WARM_UP)
    return warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _settle_on(device: torch.device, optimizer: torch.optim.Optimizer) -> None:
    """Make the steps of an optimizer such that they can be recorded, where they will be."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
        if device.type == "cuda":  # a number would be recorded with the step, and never change
            group["lr"] = torch.tensor(float(group["lr"]), device=device)


def _set_rate(group: dict[str, Any], share: float) -> None:
    """The learning rate, as a share of its peak; where it is a tensor (`_settle_on`), in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(group["peak"] * share)
    else:
        group["lr"] = group["peak"] * share


def _optimizers(
    module: nn.Module, *, learning_rate: float, weight_decay: float, device: torch.device
) -> list[torch.optim.Optimizer]:
    """Muon for the transformers' matrices, AdamW for everything else.

    At 300 steps on the inverted pendulum, the held-out NLL above the floor was 0.118 nats/dim with Muon and 0.195 with
    AdamW at three times this rate, its best of two.
    """
    wanted = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    slot_rows = {p: m.norm.weight.numel() for m in module.modules() if isinstance(m, Mixing) for p in m.parameters()}
    matrices = defaultdict(list)
    for name, p in wanted:
        if p.dim() == 2 and ".blocks." in name:
            matrices[slot_rows.get(p)].append(p)
    others = [p for name, p in wanted if p.dim() != 2 or ".blocks." not in name]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if matrices:
        parts = [{"params": parameters, "rows": rows} for rows, parameters in matrices.items()]
        optimizers.append(Muon(parts, lr=MUON_RATE * learning_rate, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
        _settle_on(device, optimizer)
    return optimizers
