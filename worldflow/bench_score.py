"""How fast trajectories are scored: frame by frame as they come, and offline.

    worldflow bench score RUN

Streaming is `worldflow.Monitor`, batch 1, with every statistic; offline is `worldflow.score`, which passes at most so
many frames through the world at a time (`worldflow.statistics.frames_at_once`) and remembers what a stream remembers:
the memory that it takes does not grow with the trajectory, and the rate does not fall. Two lengths show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from worldflow.bench_report import measured_world, report
from worldflow.monitor import Monitor
from worldflow.recipes import Preset
from worldflow.score import score
from worldflow.timing import count_flops, timed
from worldflow.types import Episode
from worldflow.world import WorldModel

__all__ = ["ScoreBench", "score_speed"]


def score_speed(
    world: WorldModel, *, lengths: Sequence[int] = (64, 512), seconds: float = 3.0, num_draws: int = 1
) -> list[dict[str, Any]]:
    """Transitions scored a second, a row for each way, with the bound on pixels and without.

    Args:
        world: The world; it must store pasts, whose frames are scored.
        lengths: Transitions of the trajectories that are scored offline.
        seconds: How long each row is measured.
        num_draws: Draws of the codes' noise.

    Raises:
        ValueError: If the world stores no pasts.
    """
    rows = []
    for pixels in (True, False):
        episode = _trajectory(world, max(lengths))
        monitor = Monitor(world, pixels=pixels, num_draws=num_draws)
        monitor.reset(episode.frames[0])

        def step(monitor: Monitor = monitor, episode: Episode = episode) -> None:
            monitor.step(episode.frames[1], episode.actions[0], 0.0)

        for _ in range(world.config.flow.window):  # until the attention window is full
            step()
        rows.append(_row("streaming", 1, step, pixels=pixels, seconds=seconds))
        for length in lengths:
            part = _trajectory(world, length)

            def whole(part: Episode = part, pixels: bool = pixels) -> None:
                score(world, [part], pixels=pixels, num_draws=num_draws, progress=False)

            rows.append(_row("offline", length, whole, pixels=pixels, seconds=seconds))
    return rows


@dataclass(frozen=True, kw_only=True)
class ScoreBench:
    """Transitions scored a second, as they come and offline."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, or the name of a world that ships."""
    lengths: tuple[int, ...] = (64, 512)
    """Transitions of the trajectories that are scored offline."""
    draws: int = 1
    """Draws of the codes' noise to average over."""
    preset: Preset | None = None
    """Another size, with random weights, for the run's spaces."""
    seconds: float = 3.0
    """How long each row is measured."""
    out: str | None = None
    """JSON file for the rows."""

    def __call__(self) -> None:
        """Measure and print."""
        world = measured_world(self.run, self.preset)
        rows = score_speed(world, lengths=self.lengths, seconds=self.seconds, num_draws=self.draws)
        report(rows, out=self.out, device=world.device, title="score")


def _row(way: str, length: int, scored: Any, *, pixels: bool, seconds: float) -> dict[str, Any]:
    took = timed(scored, seconds=seconds, warm_up=1, at_least=2)
    return {
        "way": way,
        "transitions": length,
        "pixels": pixels,
        "transitions_per_second": length / took.median,
        "milliseconds": 1e3 * took.median / length,
        "gflop_per_transition": count_flops(scored) / length / 1e9,
    }


def _trajectory(world: WorldModel, length: int) -> Episode:
    """Stored pasts, one behind the other, over and over."""
    if world.contexts is None:
        raise ValueError("this world stores no pasts to score")
    frames = world.contexts.frames.flatten(0, 1).cpu().numpy()
    actions = world.contexts.actions.flatten(0, 1).cpu().numpy()
    return Episode(
        frames=frames[np.arange(length + 1) % len(frames)],
        actions=actions[np.arange(length) % len(actions)],
        rewards=np.zeros(length, np.float32),
        terminated=np.zeros(length, bool),
        truncated=np.zeros(length, bool),
    )
