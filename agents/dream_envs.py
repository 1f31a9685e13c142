"""Imagined episodes as Stable-Baselines3 trains in them: stacked frames, and penalties where the world knows little.

    envs = dream_envs(world, num_envs=32, horizon=60, stack=3, entropy_penalty=0.1)
    PPO("MlpPolicy", envs).learn(100_000)

A policy that maximizes imagined reward finds what the world gets wrong. Two penalties keep it from there, each for what
goes beyond the usual only, so that neither pays for staying alive nor for ending early where all is as recorded:

    r' = r - weight max(0, H / D - H_usual)                 entropy: the world is unsure
    r' = r - weight max(0, L_usual - log p(x~ | x~_<) / D)   in distribution: nobody who was recorded went there

`H` is the predicted entropy of the frame's tokens, `log p(x~ | x~_<)` the exact log-density of the frame that was drawn
with the action hidden, `D` their numbers, so that all are nats per dimension; what is usual is the mean over recorded
pasts. The likelihood that a step's info tells is of no use here: it is that of the world's own draw, given the action,
which is minus the entropy plus noise. The price of the second is one more pass of the flow a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldflow.agents.likelihood import log_density
from worldflow.envs.latent import FrameStack
from worldflow.envs.learned_vector import LearnedVectorEnv
from worldflow.envs.sb3 import SB3VecEnv
from worldflow.randomness import normal
from worldflow.world import Contexts, WorldModel

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor  # isort: skip  (envs.sb3 says if missing)

if TYPE_CHECKING:
    from jaxtyping import Float64
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
    from torch import Tensor

__all__ = ["EntropyPenalty", "LikelihoodPenalty", "StackedFrames", "dream_envs", "usual_entropy", "usual_likelihood"]


def dream_envs(
    world: WorldModel,
    *,
    num_envs: int = 32,
    stack: int = 3,
    entropy_penalty: float = 0.0,
    likelihood_penalty: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> VecEnv:
    """Imagined episodes side by side, with all wrappers; `VecMonitor` among them counts returns without penalties.

    Args:
        world: The world.
        num_envs: Episodes.
        stack: Frames in an observation.
        entropy_penalty: Weight of `EntropyPenalty`; 0 leaves it out.
        likelihood_penalty: Weight of `LikelihoodPenalty`; 0 leaves it out, and its price.
        seed: Of the episodes.
        options: Fields of `worldflow.envs.options.EpisodeOptions`; `observation` is `pixels` or `latent`.

    Raises:
        ValueError, TypeError: If an option does not fit the world.
    """
    learned = LearnedVectorEnv(world, num_envs=num_envs, autoreset_mode="SameStep", **options)
    contexts = options.get("contexts") or world.contexts
    envs: VecEnv = VecMonitor(SB3VecEnv(learned))
    if entropy_penalty:
        envs = EntropyPenalty(envs, entropy_penalty, usual=usual_entropy(world, contexts))
    if likelihood_penalty:
        envs = LikelihoodPenalty(envs, likelihood_penalty, usual=usual_likelihood(world, contexts), seed=seed)
    envs = StackedFrames(envs, stack)
    envs.seed(seed)
    return envs


class StackedFrames(VecEnvWrapper):
    """Observes the last frames of every episode, as `worldflow.envs.latent.LatentObservation` does for real.

    An episode that starts from a bank of pasts sees the end of its past; any other its first frame, repeated.

    Args:
        venv: Wraps an `SB3VecEnv` that observes pixels or tokens.
        stack: Frames in an observation.
    """

    def __init__(self, venv: VecEnv, stack: int) -> None:
        self._frames = FrameStack(venv.num_envs, stack, venv.observation_space)
        self._pasts = _ends_of_pasts(_learned(venv), stack - 1)
        super().__init__(venv, observation_space=self._frames.space)

    def reset(self) -> np.ndarray:
        """Start all episodes."""
        self._start(range(self.num_envs), np.asarray(self.venv.reset()))
        return self._frames.all()

    def step_wait(self) -> VecEnvStepReturn:
        """Step them; the last observation of an episode that ended is stacked on what it showed before."""
        seen, rewards, dones, infos = self.venv.step_wait()
        shown = np.array(seen)
        ended = np.flatnonzero(dones)
        for i in ended:
            shown[i] = infos[i]["terminal_observation"]
        self._frames.push(shown)
        for i in ended:
            infos[i]["terminal_observation"] = self._frames.row(int(i))
        if len(ended):
            self._start(ended.tolist(), np.asarray(seen)[ended])
        return self._frames.all(), rewards, dones, infos

    def _start(self, rows: Any, frames: np.ndarray) -> None:
        self._frames.start(rows, frames)
        for i in rows:
            context = self.unwrapped.reset_infos[i].get("context")
            if self._pasts is not None and context is not None:
                self._frames.fill(i, self._pasts[context])


class EntropyPenalty(VecEnvWrapper):
    """Takes off the reward what the world is unsure of.

    Args:
        venv: Imagined episodes.
        weight: Reward lost per nat per dimension.
        usual: Entropy that costs nothing, nats per dimension, see `usual_entropy`.

    Raises:
        ValueError: If a number is not finite, or the weight is negative.
    """

    def __init__(self, venv: VecEnv, weight: float, *, usual: float) -> None:
        self.weight, self.usual = _checked_weight(weight, usual), usual
        self._dim = _learned(venv).world.config.flow.frame_dim
        super().__init__(venv)

    def reset(self) -> Any:
        """Start all episodes."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Step them; `info["entropy_penalty"]` tells what was taken off."""
        seen, rewards, dones, infos = self.venv.step_wait()
        entropy = np.array([info["entropy_frame"] for info in infos]) / self._dim
        return seen, _less(rewards, self.weight * (entropy - self.usual), infos, "entropy_penalty"), dones, infos


class LikelihoodPenalty(VecEnvWrapper):
    """Takes off the reward what is unlike the recorded behavior.

    The noise of a shown frame's code is drawn anew, by a generator of its own, where the world does not tell the noisy
    code that it drew (`FlowConfig.has_shown`, and pixels).

    Args:
        venv: Imagined episodes, not yet stacked.
        weight: Reward lost per nat per dimension.
        usual: Log-density that costs nothing, nats per dimension, see `usual_likelihood`.
        seed: Of the noise.

    Raises:
        ValueError: If a number is not finite, or the weight is negative.
    """

    def __init__(self, venv: VecEnv, weight: float, *, usual: float, seed: int = 0) -> None:
        self.weight, self.usual = _checked_weight(weight, usual), usual
        self._envs = _learned(venv)
        self._sees_pixels = venv.observation_space.dtype == np.uint8
        self._generator = torch.Generator().manual_seed(seed)
        super().__init__(venv)

    def reset(self) -> Any:
        """Start all episodes."""
        return self.venv.reset()

    @torch.no_grad()
    def step_wait(self) -> VecEnvStepReturn:
        """Step them; `info["likelihood_penalty"]` tells what was taken off."""
        world, before = self._envs.world, self._envs.state
        seen, rewards, dones, infos = self.venv.step_wait()
        shown = np.array(seen)
        for i in np.flatnonzero(dones):
            shown[i] = infos[i]["terminal_observation"]
        frames = torch.from_numpy(shown).to(world.device)
        if self._sees_pixels:
            codes = world.codes(frames.reshape(len(frames), *world.config.data.frame_shape))
        else:
            codes = frames.to(world.dtype)
        if self._sees_pixels or world.config.flow.has_shown:
            x = world.with_noise(codes, generator=self._generator)
        else:
            codes = x = world.flow.from_deep(codes)
        score = log_density(world, before, None, x, codes).cpu().numpy() / world.config.flow.frame_dim
        return seen, _less(rewards, self.weight * (self.usual - score), infos, "likelihood_penalty"), dones, infos


def usual_entropy(world: WorldModel, contexts: Contexts | None) -> float:
    """Mean predicted entropy of the last frame of recorded pasts, nats per dimension.

    Raises:
        ValueError: If there are no pasts of two frames or more.
    """
    before, features, x, _ = _last_steps(world, contexts)
    z = normal(tuple(x.shape), torch.Generator().manual_seed(0), device=x.device, dtype=x.dtype)
    with torch.no_grad():
        drawn = world.flow.draw(before, features, z)
    return float(drawn.entropy.double().mean()) / world.config.flow.frame_dim


def usual_likelihood(world: WorldModel, contexts: Contexts | None) -> float:
    """Mean log-density of the last frame of recorded pasts, its action hidden, nats per dimension.

    Raises:
        ValueError: If there are no pasts of two frames or more.
    """
    before, _, x, codes = _last_steps(world, contexts)
    with torch.no_grad():
        return float(log_density(world, before, None, x, codes).mean()) / world.config.flow.frame_dim


def _last_steps(world: WorldModel, contexts: Contexts | None) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Of recorded pasts: the state before the last frame, the action's features, its noisy codes and its codes."""
    if contexts is None or contexts.frames.shape[1] < 2:
        raise ValueError(
            "a penalty is on what is unlike recorded pasts of at least two frames, and there are none; "
            "name a data set to start from, or leave the penalty out"
        )
    generator = torch.Generator().manual_seed(0)
    frames, actions = contexts.frames[:256], contexts.actions[:256]
    before = world.start(frames[:, :-1], actions[:, :-1], generator=generator)
    codes = world.codes(frames[:, -1:])
    x = world.with_noise(codes, generator=generator)
    return before, world.encode_actions(actions[:, -1:])[:, 0].to(world.dtype), x[:, 0], codes[:, 0]


def _ends_of_pasts(envs: LearnedVectorEnv, count: int) -> np.ndarray | None:
    """The last `count` frames before the first observation of each past of the bank, as they are observed."""
    bank, world = envs.contexts, envs.world
    if bank is None or not count or bank.frames.shape[1] < 2:
        return None
    frames = bank.frames[:, -1 - count : -1]
    if envs.single_observation_space.dtype == np.uint8:
        return frames.numpy().reshape(*frames.shape[:2], *(envs.single_observation_space.shape or ()))
    with torch.no_grad():
        parts = [world.codes(part) for part in frames.split(64)]
        tokens = torch.cat(parts)
        if not world.config.flow.has_shown:
            noisy = world.with_noise(tokens, generator=torch.Generator().manual_seed(0))
            tokens, _ = world.flow.to_deep(noisy)
    return tokens.float().cpu().numpy()


def _learned(venv: VecEnv) -> LearnedVectorEnv:
    base = venv.unwrapped
    if not isinstance(base, SB3VecEnv):
        raise TypeError(f"expected environments over an SB3VecEnv of a learned world, got {type(base).__name__}")
    return base.envs


def _less(
    rewards: np.ndarray, penalties: Float64[np.ndarray, " env"], infos: list[dict[str, Any]], name: str
) -> np.ndarray:
    penalties = np.maximum(0.0, penalties)
    for info, penalty in zip(infos, penalties, strict=True):
        info[name] = float(penalty)
    return (rewards - penalties).astype(rewards.dtype)


def _checked_weight(weight: float, usual: float) -> float:
    if not (0 <= weight < float("inf") and np.isfinite(usual)):
        raise ValueError(f"a penalty needs a finite weight of at least 0 and a finite usual, got {weight} and {usual}")
    return weight
