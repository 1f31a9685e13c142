"""What contenders reached in the real environment: episodes, means with intervals, differences on the same seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from worldflow.envs.collect import record_episode
from worldflow.envs.policies import Policy, start_episode
from worldflow.metrics import bootstrap_interval

if TYPE_CHECKING:
    import gymnasium as gym
    from jaxtyping import Float64

    from worldflow.types import Episode

__all__ = ["Estimate", "PlayedEpisode", "Standing", "play_episode"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, and the interval that it lies in with 95 %; none for a single episode."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of_mean(cls, values: Float64[np.ndarray, " row"]) -> Estimate:
        """The mean of independent rows, with its bootstrap interval."""
        if len(values) < 2:
            return cls(value=float(np.mean(values)), low=None, high=None)
        low, high = bootstrap_interval(values)
        return cls(value=float(np.mean(values)), low=float(low), high=float(high))

    def text(self, spec: str = ".4g") -> str:
        """In words, such as `12 (10 to 15)`."""
        if self.low is None or self.high is None:
            return format(self.value, spec)
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


@dataclass(frozen=True, kw_only=True)
class PlayedEpisode:
    """One real episode in numbers."""

    seed: int
    """What the environment was reset with."""
    total: float
    """Its return, not discounted."""
    length: int
    """Its steps."""
    is_terminated: bool
    """Whether it came to an end by itself; else it was cut off."""
    seconds_per_decision: float
    """How long the contender took for one action, on average."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What one contender reached."""

    name: str
    about: str
    """Who it is, in words."""
    real_steps: int | None
    """Real transitions that it learned from; None where nobody knows."""
    episodes: Sequence[PlayedEpisode]

    @property
    def returns(self) -> Float64[np.ndarray, " episode"]:
        """Return of each episode."""
        return np.array([episode.total for episode in self.episodes], np.float64)

    @property
    def mean(self) -> Estimate:
        """The mean return."""
        return Estimate.of_mean(self.returns)

    def ahead_of(self, other: Standing) -> Estimate:
        """How much more it gets than another one, on the seeds that both played.

        Raises:
            ValueError: If there is no such seed.
        """
        theirs = {episode.seed: episode.total for episode in other.episodes}
        both = [episode.total - theirs[episode.seed] for episode in self.episodes if episode.seed in theirs]
        if not both:
            raise ValueError(f"{self.name} and {other.name} played no seed both; play the same ones")
        return Estimate.of_mean(np.array(both))

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            "name": self.name,
            "about": self.about,
            "real_steps": self.real_steps,
            "mean_return": asdict(self.mean),
            "mean_length": float(np.mean([episode.length for episode in self.episodes])),
            "terminated": sum(episode.is_terminated for episode in self.episodes),
            "seconds_per_decision": float(np.mean([episode.seconds_per_decision for episode in self.episodes])),
            "episodes": [asdict(episode) for episode in self.episodes],
        }


def play_episode(policy: Policy, env: gym.Env[Any, Any], *, seed: int, max_steps: int) -> tuple[PlayedEpisode, Episode]:
    """Play one real episode.

    Args:
        policy: Who acts.
        env: An environment that observes images; it is not closed.
        seed: Of the environment and, through a generator of its own, of the policy.
        max_steps: Steps after which the episode is cut off.

    Returns:
        The numbers, and the episode itself.
    """
    timed = _Timed(policy)
    episode = record_episode(env, timed, seed=seed, max_steps=max_steps)
    numbers = PlayedEpisode(
        seed=seed,
        total=float(episode.rewards.sum(dtype=np.float64)),
        length=len(episode),
        is_terminated=bool(episode.terminated[-1]),
        seconds_per_decision=timed.seconds / len(episode),
    )
    return numbers, episode


class _Timed:
    """A policy on a stopwatch."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.seconds = 0.0

    def reset(self, generator: np.random.Generator) -> None:
        start_episode(self._policy, generator)

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> Any:
        started = time.perf_counter()
        action = self._policy(observation, info, generator)
        self.seconds += time.perf_counter() - started
        return action
