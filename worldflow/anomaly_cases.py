"""Fresh episodes to judge detectors by: normal ones, labeled anomalies, other behavior, pictures that are too simple.

All follow the recorded policy in the recorded environment. Anomalous episodes start from the seeds of normal ones, so
that they differ by the fault alone, and faults begin part-way, so that one can ask how long they went unnoticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from worldflow.types import Episode

if TYPE_CHECKING:
    import gymnasium as gym
    from jaxtyping import UInt8

    from worldflow.data import Dataset
    from worldflow.envs.policies import Policy

__all__ = [
    "CALIBRATION",
    "CONTROL",
    "NORMAL",
    "ONSET",
    "SIMPLE",
    "SUBTLE",
    "Case",
    "Stage",
    "cases",
    "mean_frame",
    "simple_episodes",
]

CALIBRATION, NORMAL, CONTROL = "calibration", "normal", "other policy"
"""Names of the cases without an anomaly."""
ONSET = (12, 20)
"""First affected steps; normal episodes count from the earliest of them on."""
SUBTLE: Mapping[str, float] = {"gravity": 1.25, "actuator_gain": 0.75}
"""Strengths that no single transition shows."""
SIMPLE = ("black", "one color", "mean frame", "blurred", "frozen")
"""Pictures that hold less than real ones."""
LEVELS = ("weak", "middle", "strong")
FIRST_SEED = 1_000_000
"""Of normal episodes; recordings count from their own small seeds."""

Kind = Literal["normal", "control", "anomaly", "simple"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Episodes of one kind.

    Args:
        name: What a table calls it.
        kind: What it is for.
        anomaly: Name of the anomaly, if it is one.
        level: `"weak"`, `"middle"`, `"strong"` or `"subtle"`.
        seeds: Of the episodes.
    """

    name: str
    kind: Kind
    anomaly: str | None = None
    level: str | None = None
    seeds: Sequence[int]

    @property
    def strength(self) -> str | float | None:
        """As `worldflow.envs.Perturb` takes it."""
        if self.level == "subtle" and self.anomaly is not None:
            return SUBTLE[self.anomaly]
        return self.level

    @property
    def slug(self) -> str:
        """Its name as a file's."""
        return re.sub(r"[^\w]+", "_", self.name)

    @property
    def about(self) -> str:
        """What tells whether episodes in a file are these."""
        return json.dumps([self.name, self.anomaly, self.strength, list(self.seeds)])


def cases(possible: Sequence[str], *, episodes: int, normal: int, seed: int = 0) -> list[Case]:
    """What is recorded.

    Args:
        possible: Names of the anomalies that can act on the environment.
        episodes: Of each anomaly and strength.
        normal: Episodes to calibrate with, as many fresh ones to compare with, and as many of each subtle anomaly.
        seed: Of everything.
    """
    start = FIRST_SEED + 10_000 * seed
    fresh, held = range(start, start + normal), range(start + normal, start + 2 * normal)
    few = fresh[:episodes]
    found = [
        Case(name=CALIBRATION, kind="normal", seeds=held),
        Case(name=NORMAL, kind="normal", seeds=fresh),
        Case(name=CONTROL, kind="control", seeds=fresh),
    ]
    subtle = [name for name in SUBTLE if name in possible]
    found += [Case(name=f"{n}, subtle", kind="anomaly", anomaly=n, level="subtle", seeds=fresh) for n in subtle]
    for level in ("middle", "weak", "strong"):
        found += [Case(name=f"{n}, {level}", kind="anomaly", anomaly=n, level=level, seeds=few) for n in possible]
    return found


class Stage:
    """Where episodes are played: the environment and policy that a data set was recorded with.

    Args:
        dataset: The data set.
        steps: Transitions after which an episode is cut off.
        env_id: The environment, if not the recorded one.
        policy: The policy, if not the recorded one.

    Raises:
        ValueError: If the data set does not say how it was recorded and nothing else is given.
    """

    def __init__(self, dataset: Dataset, *, steps: int, env_id: str | None = None, policy: str | None = None) -> None:
        recordings = dataset.metadata.get("worldflow", {}).get("recordings", [])
        recorded = recordings[-1] if recordings else {}
        self.policy = policy or recorded.get("policy")
        self.random_fraction = float(recorded.get("random_fraction", 0.0)) if policy is None else 0.0
        self.env_id, self.steps, self._spec = env_id, steps, dataset.spec
        if env_id is None and dataset.spec.env_spec is None:
            raise ValueError(f"{dataset.path} does not say in which environment it was recorded; give --env")
        if self.policy is None:
            raise ValueError(f"{dataset.path} does not say by which policy it was recorded; give --policy")

    def env(self) -> gym.Env[Any, Any]:
        """A new environment, which lasts for all steps."""
        import gymnasium as gym
        from gymnasium.envs.registration import EnvSpec

        import worldflow.envs  # noqa: F401 - registers its tasks
        from worldflow.envs.collect import make_pixel_env

        if self.env_id is not None:
            size = self._spec.frame_shape[0]
            return make_pixel_env(self.env_id, size=size, env_kwargs={"max_episode_steps": self.steps})
        assert self._spec.env_spec is not None
        spec = EnvSpec.from_json(self._spec.env_spec)
        spec.max_episode_steps = self.steps
        return gym.make(spec)

    def possible(self) -> tuple[str, ...]:
        """Names of the anomalies that can act on the environment."""
        from worldflow.envs.perturb import possible_anomalies

        env = self.env()
        try:
            return possible_anomalies(env)
        finally:
            env.close()

    def play(self, case: Case) -> Iterator[Episode]:
        """Record the episodes of a case, one after the other."""
        from worldflow.envs.collect import record_episode
        from worldflow.envs.perturb import Perturb

        env = self.env()
        try:
            played = env
            if case.anomaly is not None:
                played = Perturb(env, case.anomaly, strength=case.strength, start=ONSET)
            policy = self._policy(played, is_shifted=case.kind == "control")
            for seed in case.seeds:
                yield record_episode(played, policy, seed=seed, max_steps=self.steps)
        finally:
            env.close()

    def _policy(self, env: gym.Env[Any, Any], *, is_shifted: bool) -> Policy:
        from worldflow.envs.policies import Mixed, make_policy

        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        assert self.policy is not None
        usual = Mixed(make_policy(self.policy, **spaces), env.action_space, random_fraction=self.random_fraction)
        if not is_shifted:
            return usual
        return _Later(usual, make_policy("smooth" if self.policy == "random" else "random", **spaces), at=ONSET[0])


class _Later:
    """Another policy from some step on."""

    def __init__(self, before: Policy, after: Policy, *, at: int) -> None:
        self.before, self.after, self.at = before, after, at
        self._step = 0

    def reset(self, generator: np.random.Generator) -> None:
        from worldflow.envs.policies import start_episode

        self._step = 0
        for policy in (self.before, self.after):
            start_episode(policy, generator)

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> Any:
        self._step += 1
        policy = self.before if self._step <= self.at else self.after
        return policy(observation, info, generator)


def mean_frame(dataset: Dataset, *, episodes: int = 32) -> UInt8[np.ndarray, "row column channel"]:
    """The mean frame of the first training episodes."""
    numbers = dataset.episodes("train")[:episodes].tolist()
    means = [dataset.frames(n, 0, int(dataset.lengths[n]) + 1).mean(0) for n in numbers]
    return np.mean(means, axis=0).round().astype(np.uint8)


def simple_episodes(
    episodes: Sequence[Episode], name: str, *, mean_frame: UInt8[np.ndarray, "row column channel"]
) -> list[Episode]:
    """Normal episodes that show too simple a picture from the first onset on, with labels.

    Args:
        episodes: Normal episodes; those that end before are left out.
        name: One of `SIMPLE`.
        mean_frame: The mean of normal frames.
    """
    at = ONSET[0]
    found = []
    for episode in episodes:
        if len(episode) <= at:
            continue
        frames = np.array(episode.frames)
        shown = frames[at + 1 :]
        pictures: Mapping[str, Callable[[], np.ndarray]] = {
            "black": lambda s=shown: np.zeros_like(s),
            "one color": lambda s=shown: np.broadcast_to(mean_frame.mean((0, 1)).round().astype(np.uint8), s.shape),
            "mean frame": lambda s=shown: np.broadcast_to(mean_frame, s.shape),
            "blurred": lambda s=shown: np.stack([_without_detail(frame) for frame in s]),
            "frozen": lambda f=frames, s=shown: np.broadcast_to(f[at], s.shape),
        }
        frames[at + 1 :] = pictures[name]()
        found.append(replace(episode, frames=frames, infos={"anomaly": np.arange(len(frames)) > at}))
    return found


def _without_detail(frame: np.ndarray) -> np.ndarray:
    from worldflow.envs.picture_faults import blurred

    return np.clip(np.rint(blurred(frame.astype(np.float64), 3.0)), 0, 255).astype(np.uint8)
