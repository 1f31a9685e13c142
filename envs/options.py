"""What a learned environment can be told: where episodes start and end, and what is drawn, returned and seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    import gymnasium as gym
    import torch

    from worldflow.envs.policies import Policy
    from worldflow.world import Contexts

__all__ = ["EpisodeOptions", "ObservationKind", "whole"]

ObservationKind = Literal["pixels", "latent", "dict"]
"""What is observed: frames, the flow's tokens, or both as `{"pixels": ..., "latent": ...}`, of worlds of vectors
`{"vector": ..., "latent": ...}`, of worlds of dictionaries `{..., "latent": ...}`."""
Reward = Literal["sampled", "mean"]
Termination = Literal["sampled", "off"]


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """Options of `LearnedEnv` and `LearnedVectorEnv`, which take them as keyword arguments.

    Raises:
        ValueError: If one is out of its range, or two contradict each other.
    """

    horizon: int | None = None
    """Steps after which an episode is truncated; by default the recorded environment's own time limit, or 200 if it
    had none."""
    temperature: float = 1.0
    """Scale of the frames' noise; below 1 draws nearer to the mode."""
    guidance: float = 0.0
    """How far to go beyond the actions: frames are drawn that the action makes more likely than hidden actions do
    (`worldflow.guidance.sharpen`), at twice the cost. 0 draws as the world is."""
    observation: ObservationKind = "pixels"
    """`pixels` as recorded, also where that is a vector or a dictionary; `latent`, the flow's tokens as float32
    `(token, latent)`, for which no frame is decoded where the world itself needs none; `dict`, both."""
    reward: Reward = "sampled"
    """Whether rewards are drawn, or are the means of what they would be drawn from."""
    termination: Termination = "sampled"
    """Whether terminations are drawn, or never happen."""
    compile: bool = False
    """Whether to step in machine code, several times as fast, which takes about a minute to make the first time
    (`worldflow.compiled`). Where that cannot be, a warning says why, and steps are as they were."""
    contexts: Contexts | None = None
    """Pasts to start from; by default the bank that the world carries."""
    real_env: gym.Env[Any, Any] | str | None = None
    """An environment, or its id, to take pasts from instead: its reset and a few steps. Its frames are rendered where
    it does not observe any."""
    real_policy: str | Policy | None = None
    """What acts there: a policy, or its name, as for `worldflow collect`; None holds the neutral action, zero or the
    nearest to it."""
    real_steps: int | None = None
    """Steps taken there; by default as many as the flow's window holds."""
    text: str | torch.Tensor | np.ndarray | None = None
    """Prompt that all episodes follow, for a world that reads text; or its embedding `(word, text)`. Where no past is
    named, the first frame is then drawn, too."""
    encoder: str | None = None
    """Where the text encoder is now, if not where it was in training."""

    def __post_init__(self) -> None:
        if self.horizon is not None:
            whole("horizon", self.horizon)
        for name in ("temperature", "guidance"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        for name, kind in (("observation", ObservationKind), ("reward", Reward), ("termination", Termination)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {list(get_args(kind))}, got {getattr(self, name)!r}")
        if self.real_env is None and (self.real_policy is not None or self.real_steps is not None):
            raise ValueError("real_policy and real_steps say what is done in real_env: give one, too")
        if self.real_env is not None and self.contexts is not None:
            raise ValueError("pasts come either from contexts or from real_env: give one of them")
        if self.real_steps is not None:
            whole("real_steps", self.real_steps)


def whole(name: str, value: Any) -> int:
    """`value`, if it is a whole number of at least 1.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
