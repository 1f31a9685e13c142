"""Agents trained in the real environment: what a policy that was trained in a dream is held against.

Everything but the environment is as in `worldflow.agents.dream`: the same algorithm with the same settings, the same
network, the same observation. Tokens are those of the world's codec, which was trained on recordings: who sees by them
has an eye that it did not pay for. With `observation="pixels"` an agent learns to see by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from tqdm import tqdm
from tyro.conf import Suppress

from worldflow.agents.algorithms import make_agent, reward_scale, scaled_rewards
from worldflow.agents.dream_config import DreamConfig
from worldflow.agents.rollout import check_count
from worldflow.atomic import replacing
from worldflow.envs.dreamed_policy import DreamRecord
from worldflow.envs.latent import FrameStack, LatentObservation
from worldflow.envs.observations import check_fits
from worldflow.envs.saved_agent import randomness_put_back
from worldflow.fingerprint import world_fingerprint
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["RealTraining", "StackedPixels", "train_real"]

# fmt: off
_LIKE = ("algorithm", "observation", "stack", "num_envs", "discount", "learning_rate", "normalize_reward", "settings")
# fmt: on


@dataclass(frozen=True, kw_only=True)
class RealTraining:
    """How to train an agent in the real environment; also the options of a contender `train`."""

    algorithm: Literal["ppo", "sac", "dqn"] = "ppo"
    """Stable-Baselines3's ppo, for any actions; sac, for continuous ones; dqn, for one choice among some."""
    steps: int = 50_000
    """Real steps to train for; the algorithm finishes the rollout that it is in."""
    observation: Literal["latent", "pixels"] = "latent"
    """What it sees: the world's tokens, as a dreamed policy does, or pixels through a CNN."""
    stack: int = 3
    """Frames that it sees."""
    num_envs: int = 8
    """Real environments side by side; all of their steps count."""
    discount: float = 0.99
    """Weight of a reward one step later."""
    learning_rate: float = 3e-4
    """Step size of Adam."""
    normalize_reward: bool = True
    """Scale rewards so that returns have unit variance."""
    save_every: int = 5_000
    """Steps between two saves, from which an interrupted training goes on."""
    seed: int = 0
    """Seed of everything that is random."""
    like: str | None = None
    """File of a dreamed agent whose algorithm, observation and settings to take instead of those above; but for steps,
    save_every and seed."""
    settings: Suppress[Mapping[str, Any]] = field(default_factory=dict)
    """Further arguments of the algorithm, by Stable-Baselines3's names."""

    def __post_init__(self) -> None:
        check_count("save_every", self.save_every)
        self.as_dream()

    @property
    def file_name(self) -> str:
        """A name for the agent's file that other options do not share."""
        like = "" if self.like is None else f"like_{Path(self.like).stem}_"
        return f"real_{like}{self.algorithm}_{self.observation}_{self.steps}_{self.seed}.zip"

    def resolved(self) -> RealTraining:
        """The same with what `like` says.

        Raises:
            FileNotFoundError, ValueError: If there is no such agent, or it was trained in another way.
        """
        if self.like is None:
            return self
        found = DreamRecord.read(self.like).config
        try:
            return replace(self, **{name: found[name] for name in _LIKE})
        except KeyError as error:
            raise ValueError(f"{self.like} does not say with which {error} it was trained; name the options") from error

    def as_dream(self) -> DreamConfig:
        """The same training as one in a dream has it.

        Raises:
            ValueError: If a value is out of its range.
        """
        mine = asdict(self)
        del mine["save_every"], mine["like"]
        return DreamConfig(**mine)


class StackedPixels(gym.Wrapper[np.ndarray, Any, Any, Any]):
    """A real environment of pixels, observed as its last frames, stacked along their channels, the oldest first.

    Args:
        env: The environment.
        stack: Frames in an observation; an episode begins with its first one repeated.
    """

    def __init__(self, env: gym.Env[Any, Any], *, stack: int = 3) -> None:
        super().__init__(env)
        self._frames = FrameStack(1, stack, env.observation_space)
        self.observation_space = self._frames.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "row column channel"], dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._frames.start([0], observation[None])
        return self._frames.row(0), info

    def step(self, action: Any) -> tuple[UInt8[np.ndarray, "row column channel"], Any, bool, bool, dict[str, Any]]:
        """Do it, and see what comes of it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._frames.push(observation[None])
        return self._frames.row(0), reward, terminated, truncated, info


def train_real(
    make_env: Callable[[], gym.Env[Any, Any]],
    out: str | os.PathLike[str],
    *,
    config: RealTraining,
    world: WorldModel,
    run: str | None = None,
    progress: bool = True,
) -> Path:
    """Train an agent in the real environment, or go on with it; nothing is done if it has all its steps.

    Args:
        make_env: Makes the environment, which observes pixels.
        out: The agent's file, `AGENT.zip`; `AGENT.json` beside it says how many steps it saw.
        config: How to train.
        world: Whose codec it sees by, and whose spaces the environment must have.
        run: Folder or name of the world, by which the agent finds it again.
        progress: Whether to show a progress bar.

    Returns:
        `out` as a `Path`. `worldflow.envs.dreamed_policy.DreamedPolicy` reads it.

    Raises:
        ImportError: If Stable-Baselines3 is not installed.
        ValueError: If the environment does not fit, or what is there was trained in another way.
        RuntimeError: If the environment raises; what was learned is kept.
        KeyboardInterrupt: Somebody interrupted; the message says what was kept.
    """
    path = Path(out)
    record = _record(path, config, world, run)
    if record.steps >= config.steps:
        return path
    with randomness_put_back():
        training = _RealTraining(make_env, path, record, config, world)
        try:
            training.run(progress=progress)
        except KeyboardInterrupt:
            training.save()
            raise KeyboardInterrupt(f"interrupted; {training.kept()}") from None
        except Exception as error:
            training.save()
            raise RuntimeError(f"training for real met {type(error).__name__}: {error}; {training.kept()}") from error
        finally:
            training.envs.close()
    return path


class _RealTraining:
    """One training: the algorithm, its environments, and what is on disk."""

    def __init__(
        self,
        make_env: Callable[[], gym.Env[Any, Any]],
        path: Path,
        record: DreamRecord,
        config: RealTraining,
        world: WorldModel,
    ) -> None:
        from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

        def make() -> gym.Env[Any, Any]:
            env = make_env()
            check_fits(world.config.data, env)
            if config.observation == "latent":
                return LatentObservation(env, world, stack=config.stack)
            return StackedPixels(env, stack=config.stack)

        self.path, self.record, self.config = path, record, config
        dreamlike = config.as_dream()
        self.envs: Any = VecMonitor(DummyVecEnv([make] * config.num_envs))
        seed = config.seed + record.steps  # a training that goes on meets other episodes than at first
        self.envs.seed(seed)
        if config.normalize_reward:
            self.envs = scaled_rewards(self.envs, dreamlike, record.reward_scale)
        self.agent = make_agent(dreamlike, self.envs, seed, path if record.steps else None)

    def run(self, *, progress: bool) -> None:
        """Train to the end."""
        begun = self.record.steps
        title = self.path.stem[:40]
        with tqdm(total=self.config.steps, initial=begun, desc=title, unit="step", disable=not progress) as bar:

            def after_step(found: Mapping[str, Any], _: Mapping[str, Any]) -> bool:
                bar.update(self.agent.num_timesteps - bar.n)
                if self.agent.num_timesteps - self.record.steps >= self.config.save_every:
                    self.save()
                    returns = [episode["r"] for episode in self.agent.ep_info_buffer]
                    if returns:
                        bar.set_postfix_str(f"mean return {np.mean(returns):.5g}", refresh=False)
                return True

            self.agent.learn(self.config.steps - begun, callback=after_step, reset_num_timesteps=begun == 0)
        self.save()

    def save(self) -> None:
        """Write the agent, then how many steps it saw."""
        steps = int(self.agent.num_timesteps)
        if steps <= self.record.steps:
            return
        scale = reward_scale(self.agent) or self.record.reward_scale
        self.record = replace(self.record, steps=steps, reward_scale=scale)
        with replacing(self.path) as temporary:
            self.agent.save(temporary)
        self.record.write(self.path)

    def kept(self) -> str:
        """What is kept, in words."""
        if not self.record.steps:
            return "nothing was learned yet"
        return f"the agent after {self.record.steps} real steps is kept in {self.path}, the same call goes on"


def _record(path: Path, config: RealTraining, world: WorldModel, run: str | None) -> DreamRecord:
    """What lies beside the agent, or will."""
    data = world.config.data
    new = DreamRecord(
        algorithm=config.algorithm,
        observation=config.observation,
        stack=config.stack,
        frame_shape=data.image_shape,
        action_space=data.action_space,
        world=run,
        fingerprint=world_fingerprint(world),
        config={"trained": "real", **asdict(config)},
    )
    if not path.exists():
        return new
    old = DreamRecord.read(path)
    may_change = {"steps", "save_every"}
    changed = [k for k, v in new.config.items() if k not in may_change and old.config.get(k) != v]
    if changed or old.fingerprint != new.fingerprint:
        raise ValueError(
            f"{path} was trained with another {' and another '.join(changed) or 'world'}; remove it, or choose another"
        )
    return replace(new, steps=old.steps, reward_scale=old.reward_scale)
