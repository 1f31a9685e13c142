"""Policies that were trained in dreams, acting on real frames.

`worldflow dream` writes `AGENT.zip`, what Stable-Baselines3 saves, and `AGENT.json` beside it: what the policy observes
of which world, and how its training went. A policy of tokens needs that world to see: it is found by its name,
or given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium import spaces

from worldflow.atomic import write_bytes
from worldflow.envs.saved_agent import open_agent, predicted

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from worldflow.world import WorldModel

__all__ = ["DreamRecord", "DreamedPolicy", "Evaluation", "is_dreamed"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a policy was worth after some steps of training."""

    step: int
    """Imagined steps so far."""
    horizon: int
    """Steps of an imagined episode then."""
    imagined_return: float | None
    """Mean return of the imagined episodes that ended since the last evaluation, penalties left out; None if none."""
    imagined_length: float | None
    """Mean length of the same."""
    real_return: float | None = None
    """Mean return in the real environment, if there is one."""
    real_returns: tuple[float, ...] = ()
    """Return of each real episode."""


@dataclass(frozen=True, kw_only=True)
class DreamRecord:
    """What lies beside a policy that was trained in a dream."""

    algorithm: Literal["ppo", "sac", "dqn"]
    """What trained it."""
    observation: Literal["latent", "pixels"]
    """What it observes of a frame."""
    stack: int
    """Frames that it observes."""
    frame_shape: tuple[int, int, int]
    """Of the frames: row, column, channel."""
    action_space: str
    """As Minari writes it."""
    world: str | None
    """Folder or name of the world; None if it was given as an object."""
    fingerprint: str
    """Of the world."""
    config: dict[str, Any]
    """How it was trained."""
    reward_scale: tuple[float, float, float] = (0.0, 1.0, 1e-4)
    """Mean, variance and count of imagined returns so far, by which rewards are scaled in training."""
    steps: int = 0
    """Imagined steps that the latest policy saw."""
    best_step: int | None = None
    """Imagined steps that the policy in the file saw, where it is the best one in the real environment."""
    history: tuple[Evaluation, ...] = ()
    """How it went."""

    def write(self, agent: str | os.PathLike[str]) -> None:
        """Write it beside the agent's file, whole or not at all."""
        write_bytes(_side_file(agent), (json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n").encode())

    @classmethod
    def read(cls, agent: str | os.PathLike[str]) -> DreamRecord:
        """Read what lies beside an agent's file.

        Raises:
            FileNotFoundError: If there is nothing.
            ValueError: If it is damaged, or something else.
        """
        path = _side_file(agent)
        try:
            plain = json.loads(path.read_text())
            if plain.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            found = cls(**plain)
            history = tuple(
                Evaluation(**{**one, "real_returns": tuple(one["real_returns"])}) for one in plain["history"]
            )
            shape, scale = tuple(found.frame_shape), tuple(found.reward_scale)
            return replace(found, history=history, frame_shape=shape, reward_scale=scale)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no {path}, which `worldflow dream` writes beside the agent; restore it, or train again"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"cannot read {path}: {error}; restore it, or train again") from error


class DreamedPolicy:
    """A policy trained in a dream, as `worldflow.envs.policies` wants policies: it acts on real frames.

    It remembers the last frames; `reset` forgets them, and the next frame begins an episode.

    Args:
        agent: What Stable-Baselines3 trained.
        world: What sees for it; not needed for a policy of pixels.
        frame_shape: Of the frames: row, column, channel.
        observation: What it observes of a frame.
        stack: Frames that it observes.
        is_deterministic: Whether it does what it thinks best, or draws from what it has learned to draw from, as in
            training; `worldflow collect` draws.

    Raises:
        ValueError: If the world is missing.
    """

    def __init__(
        self,
        agent: Any,
        world: WorldModel | None,
        *,
        frame_shape: tuple[int, int, int],
        observation: Literal["latent", "pixels"] = "latent",
        stack: int = 3,
        is_deterministic: bool = True,
    ) -> None:
        from worldflow.envs.latent import FrameReader, FrameStack, token_space

        self.agent, self.world, self.is_deterministic = agent, world, is_deterministic
        self.frame_shape = frame_shape
        if observation == "pixels":
            self._reader, space = None, spaces.Box(0, 255, frame_shape, np.uint8)
        elif world is None:
            raise ValueError("a policy of tokens sees by its world, got none: give the world that it was trained in")
        else:
            self._reader, space = FrameReader(world), token_space(world)
        self._frames = FrameStack(1, stack, space)
        self.reset(np.random.default_rng(0))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        world: WorldModel | str | os.PathLike[str] | None = None,
        *,
        is_deterministic: bool = True,
    ) -> DreamedPolicy:
        """Read what `worldflow dream` wrote.

        Args:
            path: `AGENT.zip`; `AGENT.json` is beside it.
            world: The world that it was trained in, or its run's folder; by default what it had been called.
            is_deterministic: See the class.

        Raises:
            FileNotFoundError, ImportError, ValueError: A file is not there, Stable-Baselines3 is not installed, or the
                world is another one.
        """
        from worldflow.envs.imagined import opened
        from worldflow.fingerprint import world_fingerprint

        record = DreamRecord.read(path)
        _, agent = open_agent(Path(path))
        if record.observation == "latent":
            if (world := record.world if world is None else world) is None:
                raise ValueError(
                    f"{path} sees by a world whose name it does not know; give the world it was trained in"
                )
            world = opened(world)
            if (found := world_fingerprint(world)) != record.fingerprint:
                raise ValueError(
                    f"{path} sees by a world with the fingerprint {record.fingerprint}, this one has {found}; restore "
                    "the world that it was trained in, or train again"
                )
        return cls(
            agent,
            world if record.observation == "latent" else None,  # pyright: ignore[reportArgumentType]
            frame_shape=record.frame_shape,
            observation=record.observation,
            stack=record.stack,
            is_deterministic=is_deterministic,
        )

    def reset(self, generator: np.random.Generator) -> None:
        """Forget the last episode; the noise of tokens, where they have any, follows from `generator`."""
        self._has_begun = False
        if self._reader is not None:
            self._reader.seed(int(generator.integers(2**62)))

    def __call__(
        self,
        observation: UInt8[np.ndarray, "row column *channel"],
        info: Mapping[str, Any],
        generator: np.random.Generator,
    ) -> np.ndarray:
        """Look at the next frame, and say what to do.

        Raises:
            ValueError: If the frame has another size.
        """
        frame = np.asarray(observation)
        if frame.size != np.prod(self.frame_shape) or frame.shape[:2] != self.frame_shape[:2]:
            raise ValueError(f"the policy acts on frames of shape {self.frame_shape}, got {frame.shape}")
        frame = frame.reshape(self.frame_shape)
        seen = (frame if self._reader is None else self._reader(frame))[None]
        if self._has_begun:
            self._frames.push(seen)
        else:
            self._frames.start([0], seen)
        self._has_begun = True
        return predicted(self.agent, self._frames.row(0), None if self.is_deterministic else generator)

    def check_fits(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Refuse an environment that shows or takes something else.

        Raises:
            ValueError: If its spaces are others.
        """
        shape = (*(observation_space.shape or ()), 1)[:3]
        if shape != self.frame_shape or observation_space.dtype != np.uint8:
            raise ValueError(
                f"the policy acts on uint8 frames of shape {self.frame_shape}, the environment observes "
                f"{observation_space}; make it with the size that was recorded"
            )
        mine = self.agent.action_space
        if type(mine) is not type(action_space) or mine != action_space:
            raise ValueError(f"the policy acts in {mine}, the environment in {action_space}")


def is_dreamed(path: str | os.PathLike[str]) -> bool:
    """Whether an agent's file has a side file that `worldflow dream` wrote, and no other one."""
    try:
        found = json.loads(_side_file(path).read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(found, dict) and "fingerprint" in found


def _side_file(agent: str | os.PathLike[str]) -> Path:
    return Path(agent).with_suffix(".json")
