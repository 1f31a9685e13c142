"""Policies trained in dreams: an algorithm of Stable-Baselines3 on imagined episodes, looked at for real now and then.

    result = dream("runs/pendulum", "agents/pendulum.zip", config=DreamConfig(steps=100_000), env=env)
    policy = DreamedPolicy.load(result.agent)

What was learned is saved at every evaluation, on an interrupt, and when a real environment raises: `AGENT.zip` is the
best policy in the real environment, or the latest where there is none; `AGENT.latest.zip` is where `resume` goes on;
`AGENT.json` says what they are (`worldflow.envs.dreamed_policy.DreamRecord`).
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from tqdm import tqdm

from worldflow.agents.algorithms import make_agent, reward_scale, scaled_rewards
from worldflow.agents.dream_config import DreamConfig, is_deceived
from worldflow.atomic import replacing
from worldflow.envs.dreamed_policy import DreamedPolicy, DreamRecord, Evaluation
from worldflow.envs.imagined import opened
from worldflow.envs.observations import check_fits, recorded_action_space
from worldflow.envs.saved_agent import randomness_put_back
from worldflow.fingerprint import world_fingerprint
from worldflow.world import Contexts, WorldModel

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = ["DreamConfig", "DreamResult", "DreamedPolicy", "dream", "real_returns"]

LIMIT = 1000
"""Steps after which a real episode is cut off, where the environment has no time limit of its own."""


@dataclass(frozen=True, kw_only=True)
class DreamResult:
    """What came of a training."""

    agent: Path
    """The policy's file."""
    record: DreamRecord
    """What lies beside it, with the history."""
    is_deceived: bool
    """Whether training ended early, as imagined returns rose and real ones fell."""


def dream(
    world: WorldModel | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: DreamConfig | None = None,
    env: gym.Env[Any, Any] | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> DreamResult:
    """Train a policy in a world.

    Args:
        world: The world, or the folder of its run, by which the policy finds it again.
        out: The policy's file, `AGENT.zip`; the suffix may be left out.
        config: How to train.
        env: A real environment of pixels to evaluate in; it is not closed.
        resume: Go on from what an earlier training left, up to the steps of `config`.
        device: Where to put a world that is read from a folder; by default the CPU, where the policy always is.
        progress: Whether to show a progress bar.

    Raises:
        ImportError: If Stable-Baselines3 is not installed.
        ValueError, TypeError: If algorithm, actions, environment or an option do not fit the world.
        FileExistsError: If there is a policy already, and it is not to be resumed.
        FileNotFoundError: If there is none to resume.
        RuntimeError: If the real environment raises; what was learned is kept.
        KeyboardInterrupt: Somebody interrupted; the message says what was kept.
    """
    config = DreamConfig() if config is None else config
    path = Path(out) if Path(out).suffix else Path(out).with_suffix(".zip")
    if path.suffix != ".zip":
        raise ValueError(f"a policy's file must end in .zip, got {str(out)!r}")
    if not resume and path.exists():
        raise FileExistsError(f"there is a policy in {path}; resume it, remove it, or choose another file")
    name = None if isinstance(world, WorldModel) else _named(world)
    world = opened(world, device)
    if not world.config.reward.has_rewards:
        raise ValueError(
            "all rewards that this world was trained on are 0, so that there is nothing to learn in its dreams; train "
            "it on recordings with rewards"
        )
    if env is not None:
        check_fits(world.config.data, env)
    with contextlib.ExitStack() as stack:
        stack.enter_context(randomness_put_back())
        training = _Training(world, name, path, config, env, resume=resume)
        stack.callback(training.envs.close)
        bar = stack.enter_context(
            tqdm(total=config.steps, desc="dream", unit="step", mininterval=0.5, disable=not progress)
        )
        try:
            training.run(bar)
        except KeyboardInterrupt:
            training.keep()
            raise KeyboardInterrupt(f"interrupted; {training.kept()}") from None
        except _RealError as error:
            training.keep()
            cause = error.__cause__
            raise RuntimeError(
                f"the real environment raised {type(cause).__name__}: {cause}; {training.kept()}"
            ) from cause
        except Exception as error:
            training.keep()
            error.add_note(training.kept())
            raise
    return DreamResult(
        agent=path,
        record=training.record,
        is_deceived=is_deceived(training.record.history, patience=config.patience),
    )


def real_returns(
    policy: DreamedPolicy, env: gym.Env[Any, Any], *, episodes: int, seed: int = 0, max_steps: int | None = None
) -> list[float]:
    """Returns of a policy in a real environment; episode `n` has the seed `seed + n`.

    Args:
        policy: The policy.
        env: An environment of pixels.
        episodes: How many.
        seed: Of the first one.
        max_steps: Steps after which an episode is cut off; by default the environment's own limit, or 1000.
    """
    from worldflow.envs.collect import record_episode

    own = None if env.spec is None else env.spec.max_episode_steps
    limit = min((limit for limit in (max_steps, own) if limit is not None), default=LIMIT)
    played = (record_episode(env, policy, seed=seed + n, max_steps=limit) for n in range(episodes))
    return [float(episode.rewards.sum(dtype=np.float64)) for episode in played]


class _RealError(Exception):
    """What a real environment raised is the cause of this."""


class _Training:
    """One training: the algorithm, its dreams, and what is on disk."""

    def __init__(
        self,
        world: WorldModel,
        name: str | None,
        path: Path,
        config: DreamConfig,
        env: gym.Env[Any, Any] | None,
        *,
        resume: bool,
    ) -> None:
        from worldflow.agents.dream_envs import dream_envs

        self.world, self.path, self.config, self.env = world, path, config, env
        self.latest = path.with_name(f"{path.stem}.latest.zip")
        _check_actions(config, recorded_action_space(world))
        data = world.config.data
        self.record = DreamRecord(
            algorithm=config.algorithm,
            observation=config.observation,
            stack=config.stack,
            frame_shape=data.image_shape,
            action_space=data.action_space,
            world=name,
            fingerprint=world_fingerprint(world),
            config={**asdict(config), "settings": dict(config.settings)},
        )
        if resume:
            self.record = self._resumed(self.record)
        dreams = dream_envs(
            world,
            num_envs=config.num_envs,
            stack=config.stack,
            entropy_penalty=config.entropy_penalty,
            likelihood_penalty=config.likelihood_penalty,
            seed=config.seed,
            observation=config.observation,
            horizon=config.horizon_at(self.record.steps),
            contexts=None if config.starts is None else _starts(world, config),
            temperature=config.temperature,
            reward=config.reward,
            termination=config.termination,
            text=config.text,
            compile=config.compile,
        )
        self.envs = scaled_rewards(dreams, config, self.record.reward_scale) if config.normalize_reward else dreams
        seed = config.seed + self.record.steps  # not the same dreams again
        self.agent = make_agent(config, self.envs, seed, self.latest if resume else None)
        self.record = replace(self.record, steps=int(self.agent.num_timesteps))

    def run(self, bar: tqdm[Any]) -> None:
        """Train to the end, or until the policy is deceived."""
        from worldflow.agents.dream_watch import Watch

        watch = Watch(self.config, self._evaluated, bar, first_step=self.record.steps)
        left = self.config.steps - self.record.steps
        if left > 0:
            bar.update(self.record.steps)
            self.agent.learn(left, callback=watch, reset_num_timesteps=self.record.steps == 0)

    def keep(self) -> None:
        """Write what was learned so far."""
        steps = int(self.agent.num_timesteps)
        if steps > self.record.steps:
            self.record = replace(
                self.record, steps=steps, reward_scale=reward_scale(self.agent) or self.record.reward_scale
            )
            self._write(is_best=False)

    def kept(self) -> str:
        """What is kept, in words."""
        if not self.record.steps:
            return "nothing was learned yet"
        return f"the policy after {self.record.steps} imagined steps is kept in {self.path}; resume goes on"

    def _evaluated(self, step: int, imagined: list[tuple[float, float]], horizon: int) -> tuple[Evaluation, bool]:
        """Look at the policy, save it, and say whether to go on."""
        returns = self._real_returns()
        mean = float(np.mean(returns)) if returns else None
        found = Evaluation(
            step=step,
            horizon=horizon,
            imagined_return=float(np.mean([r for r, _ in imagined])) if imagined else None,
            imagined_length=float(np.mean([n for _, n in imagined])) if imagined else None,
            real_return=mean,
            real_returns=tuple(returns),
        )
        before = [one.real_return for one in self.record.history if one.real_return is not None]
        is_best = mean is not None and mean >= max(before, default=-math.inf)
        self.record = replace(
            self.record,
            steps=step,
            history=(*self.record.history, found),
            reward_scale=reward_scale(self.agent) or self.record.reward_scale,
            best_step=step if is_best else self.record.best_step,
        )
        self._write(is_best=is_best)
        return found, not is_deceived(self.record.history, patience=self.config.patience)

    def _real_returns(self) -> list[float]:
        if self.env is None:
            return []
        config = self.config
        policy = DreamedPolicy(
            self.agent,
            self.world,
            frame_shape=self.world.config.data.image_shape,
            observation=config.observation,
            stack=config.stack,
        )
        rules = {"episodes": config.eval_episodes, "max_steps": config.eval_max_steps}
        try:
            return real_returns(policy, self.env, seed=config.seed, **rules)
        except Exception as error:
            raise _RealError from error

    def _write(self, *, is_best: bool) -> None:
        with replacing(self.latest) as temporary:
            self.agent.save(temporary)
        if is_best or self.record.best_step is None:
            with replacing(self.path) as temporary:
                shutil.copyfile(self.latest, temporary)
        self.record.write(self.path)

    def _resumed(self, new: DreamRecord) -> DreamRecord:
        old = DreamRecord.read(self.path)
        for name in ("algorithm", "observation", "stack", "action_space", "fingerprint"):
            if getattr(old, name) != getattr(new, name):
                raise ValueError(
                    f"{self.path} was trained with {name} {getattr(old, name)!r}, which cannot change in between; "
                    f"got {getattr(new, name)!r}"
                )
        if not self.latest.is_file():
            raise FileNotFoundError(f"there is no {self.latest} to go on from; train anew in another file")
        return replace(
            new, steps=old.steps, history=old.history, best_step=old.best_step, reward_scale=old.reward_scale
        )


def _starts(world: WorldModel, config: DreamConfig) -> Contexts:
    """Pasts of a data set's training episodes, any moment as likely as any other."""
    from worldflow.data import Dataset, gather, window_index
    from worldflow.spaces import check_compatible

    assert config.starts is not None
    dataset = Dataset(config.starts)
    check_compatible(world.config.data, dataset.spec)
    lengths, episodes = np.asarray(dataset.lengths, np.int64), dataset.episodes("train")
    past = max(1, min(world.config.flow.window - 1, int(lengths[episodes].max()) - 1))
    index = window_index(lengths, past, episodes=episodes)
    index = index[index[:, 1] + past < lengths[index[:, 0]]]  # a start from which at least one more step was made
    chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(config.seed))[: config.num_starts]
    clip = gather(dataset, index[chosen.sort().values.numpy()], past)
    return Contexts(frames=clip.frames, actions=clip.actions)


def _check_actions(config: DreamConfig, space: spaces.Space[Any]) -> None:
    wanted: dict[str, tuple[tuple[type, ...], str]] = {
        "ppo": ((spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary), "any actions"),
        "sac": ((spaces.Box,), "continuous actions; take ppo or dqn"),
        "dqn": ((spaces.Discrete,), "one choice among some; take ppo or sac"),
    }
    kinds, words = wanted[config.algorithm]
    if not isinstance(space, kinds):
        raise ValueError(f"{config.algorithm} is for {words}: the world's actions are {space}")
    if isinstance(space, spaces.Box) and not space.is_bounded("both"):
        raise ValueError(f"Stable-Baselines3 needs bounded actions, the world's are {space}")
    if np.any(getattr(space, "start", 0)):
        raise ValueError(f"Stable-Baselines3 needs choices that count from 0, the world's are {space}")


def _named(world: str | os.PathLike[str]) -> str:
    """A world's name, or its folder wherever one is."""
    path = Path(world)
    return str(path.resolve()) if path.is_dir() else str(world)
