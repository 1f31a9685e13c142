"""Algorithms of Stable-Baselines3 with the settings of a `DreamConfig`, for dreams and real environments alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worldflow.agents.dream_config import DreamConfig

__all__ = ["make_agent", "reward_scale", "scaled_rewards"]


def make_agent(config: DreamConfig, envs: Any, seed: int, latest: Path | None) -> Any:
    """The algorithm with settings that fit many imagined episodes side by side, or the one that is to go on."""
    import stable_baselines3 as sb3

    kind = {"ppo": sb3.PPO, "sac": sb3.SAC, "dqn": sb3.DQN}[config.algorithm]
    steps = max(1, 1024 // config.num_envs)
    replay = {"train_freq": 1, "gradient_steps": max(1, config.num_envs // 8), "learning_starts": 1000}
    own: dict[str, Any] = {
        # Imagined steps cost more than steps of the policy's gradient: it takes many from each.
        "ppo": {
            "n_steps": steps,
            "batch_size": min(256, steps * config.num_envs),
            "n_epochs": 20,
            "gae_lambda": 0.8,
        },
        "sac": replay | {"buffer_size": min(config.steps, 200_000)},
        "dqn": replay | {"buffer_size": min(config.steps, 200_000)},
    }[config.algorithm]
    settings = {
        "learning_rate": config.learning_rate,
        "gamma": config.discount,
        "seed": seed,
        "tensorboard_log": config.tensorboard,
        **own,
        **config.settings,
    }
    if latest is not None:  # also with other settings than before, where they do not change the networks
        return kind.load(latest, env=envs, device="cpu", **settings)
    policy = "MlpPolicy" if config.observation == "latent" else "CnnPolicy"
    try:
        return kind(policy, envs, device="cpu", **settings)
    except TypeError as error:
        raise ValueError(f"{config.algorithm} does not take the settings {dict(config.settings)}: {error}") from error


def scaled_rewards(envs: Any, config: DreamConfig, scale: tuple[float, float, float]) -> Any:
    """Environments whose rewards are divided by the deviation of returns, which starts from what it was before."""
    from stable_baselines3.common.vec_env import VecNormalize

    scaled = VecNormalize(envs, norm_obs=False, norm_reward=True, gamma=config.discount)
    mean, var, count = scale
    scaled.ret_rms.mean, scaled.ret_rms.var, scaled.ret_rms.count = np.array(mean), np.array(var), count
    return scaled


def reward_scale(agent: Any) -> tuple[float, float, float] | None:
    """Mean, variance and count of the returns that `scaled_rewards` saw; None where rewards are as they are."""
    scaled = agent.get_vec_normalize_env()
    if scaled is None:
        return None
    found = scaled.ret_rms
    return float(found.mean), float(found.var), float(found.count)
