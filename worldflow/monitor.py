"""Watch an environment as it goes: the scores of `worldflow.score`, transition by transition.

    monitor = wf.Monitor(world, detector=detector)
    monitor.reset(observation)
    ...
    scores = monitor.step(observation, action, reward, terminated=terminated)
    if monitor.alarms.transition[-1]: ...

The numbers are those of the offline pass over the same episode, number and seed, but for rounding. What is kept between
steps has a fixed size, whatever the length of the episode.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from worldflow.checkpoint import load
from worldflow.detector import Alarms, Detector, Watch
from worldflow.fingerprint import world_fingerprint
from worldflow.foresight import directions
from worldflow.frames import checked_frame, together
from worldflow.score import fitting_episode
from worldflow.score_types import EpisodeScores
from worldflow.statistics import EpisodeScorer, stored_pixel_std
from worldflow.types import Episode
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Shaped, UInt8

__all__ = ["Monitor"]


class Monitor:
    """Scores an episode while it happens.

    Args:
        world: The world, or the folder of its run.
        detector: Judges every transition, too, where one is given; `num_draws` is then its own.
        num_draws: Draws of the codes' noise that are averaged.
        seed: Of the noise.
        pixels: Whether to bound the bits of pixels, too.

    Attributes:
        alarms: What the detector says about the latest transition; None without one, or before the first step.

    Raises:
        ValueError: If the detector belongs to another world, or the world is in training mode.

    Example:
        >>> monitor = Monitor("runs/pendulum")                      # doctest: +SKIP
        >>> monitor.reset(env.reset(seed=0)[0])                     # doctest: +SKIP
        >>> action = env.action_space.sample()                      # doctest: +SKIP
        >>> frame, reward, terminated, _, _ = env.step(action)      # doctest: +SKIP
        >>> monitor.step(frame, action, reward, terminated=terminated).above_floor  # doctest: +SKIP
    """

    def __init__(
        self,
        world: WorldModel | str | os.PathLike[str],
        *,
        detector: Detector | None = None,
        num_draws: int | None = None,
        seed: int = 0,
        pixels: bool = True,
    ) -> None:
        if num_draws is not None and num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        self.world = world if isinstance(world, WorldModel) else load(world)
        if self.world.training:
            raise ValueError("the world is in training mode, its codec would drift; call world.eval() first")
        self.detector, self.seed = detector, seed
        self.num_draws = num_draws or (1 if detector is None else detector.num_draws)
        self.fingerprint = world_fingerprint(self.world)
        if detector is not None:
            detector.check(self.fingerprint, num_draws=self.num_draws)
        self.alarms: Alarms | None = None
        self._pixel_std = stored_pixel_std(self.world) if pixels else None
        self._basis = directions(self.world)
        self._number = -1
        self._scorer: EpisodeScorer | None = None
        self._frame: np.ndarray = np.empty(0)
        self._watch: Watch | None = None

    def reset(self, frame: UInt8[np.ndarray, "row column channel"], *, number: int | None = None) -> None:
        """Begin an episode.

        Args:
            frame: Its first frame.
            number: Its number, which its noise follows from; by default one more than the last episode's, from 0 on.

        Raises:
            ValueError: If the frame is not of the kind that the world knows.
        """
        frame = self._checked(frame)
        self._number = self._number + 1 if number is None else number
        self._scorer = EpisodeScorer(
            self.world,
            number=self._number,
            num_draws=self.num_draws,
            seed=self.seed,
            pixel_std=self._pixel_std,
            basis=self._basis,
            fingerprint=self.fingerprint,
        )
        self._scorer.start(frame)
        self._frame, self.alarms = frame, None
        self._watch = None if self.detector is None else Watch(self.detector)

    def step(
        self,
        frame: UInt8[np.ndarray, "row column channel"],
        action: Shaped[np.ndarray, "*action"],
        reward: float,
        *,
        terminated: bool = False,
    ) -> EpisodeScores:
        """Score one transition.

        Args:
            frame: The frame that the action led to.
            action: What was done.
            reward: What it gave.
            terminated: Whether it ended the episode.

        Returns:
            Scores of one transition; every array has one entry.

        Raises:
            RuntimeError: Before the first `reset`.
            ValueError: If the transition is not of the kind that the world knows.
        """
        if self._scorer is None:
            raise RuntimeError("call reset with the episode's first frame before step")
        frame = self._checked(frame)
        transition = Episode(
            frames=together(np.stack, [self._frame, frame]),
            actions=np.asarray(action)[None],
            rewards=np.array([reward], np.float32),
            terminated=np.array([terminated]),
            truncated=np.array([False]),
        )
        fitting = fitting_episode(self.world, transition, f"episode {self._number}")
        scores = self._scorer.advance(fitting.frames[1:], fitting.actions, fitting.rewards, fitting.terminated)
        self._frame = frame
        if self._watch is not None:
            self.alarms = self._watch(scores)
        return scores

    def _checked(self, frame: Any) -> Any:
        """The frame in the type that the world knows."""
        return checked_frame(self.world.config.data, frame)
