"""How a policy is trained in a dream, and when its training has gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from tyro.conf import Suppress

from worldflow.agents.rollout import check_count

if TYPE_CHECKING:
    from worldflow.envs.dreamed_policy import Evaluation

__all__ = ["DreamConfig", "is_deceived"]

Algorithm = Literal["ppo", "sac", "dqn"]
Observation = Literal["latent", "pixels"]


@dataclass(frozen=True, kw_only=True)
class DreamConfig:
    """How to train a policy in a dream; also the options of `worldflow dream`.

    Raises:
        ValueError: If a value is out of its range.
    """

    algorithm: Algorithm = "ppo"
    """Stable-Baselines3's ppo, for any actions; sac, for continuous ones; dqn, for one choice among some."""
    steps: int = 100_000
    """Imagined steps to train for."""
    observation: Observation = "latent"
    """What the policy sees: latent, the world's own tokens through a small MLP, is the fast way, and the better one
    where the world is small; pixels, through a CNN, gives a policy that needs no world to act."""
    stack: int = 3
    """Frames that it sees: velocities need two."""
    num_envs: int = 32
    """Episodes imagined side by side."""
    horizon: int = 60
    """Steps of an imagined episode; beyond it, the policy's own value counts. Longer than the world can be trusted, the
    policy learns what only the world believes."""
    first_horizon: int | None = None
    """Steps of an imagined episode in the beginning; by default the same."""
    curriculum: float = 0.5
    """Share of the training in which the horizon grows from the first to the last, linearly."""
    starts: str | None = None
    """Data set whose training episodes dreams start in; by default the pasts that the world carries."""
    num_starts: int = 1024
    """Pasts taken from there."""
    temperature: float = 1.0
    """Scale of the frames' noise; below 1 draws nearer to the mode."""
    reward: Literal["mean", "sampled"] = "mean"
    """Rewards as they are expected, which is less noisy, or drawn."""
    termination: Literal["sampled", "off"] = "sampled"
    """Whether episodes end where the world says so."""
    text: str | None = None
    """Prompt that all dreams follow, for a world that reads text."""
    compile: bool = False
    """Dream in compiled code (`WorldModel.compile_step`): faster, after a minute the first time."""
    entropy_penalty: float = 0.0
    """Reward lost a step per nat per dimension by which the world is less sure than usual."""
    likelihood_penalty: float = 0.0
    """Reward lost a step per nat per dimension by which frames are unlike what the recorded behavior leads to."""
    discount: float = 0.98
    """Weight of a reward one step later; what goes wrong only after 1 / (1 - discount) steps is hardly seen."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    normalize_reward: bool = True
    """Scale rewards so that returns have unit variance, which a value network learns faster."""
    eval_every: int = 10_000
    """Steps between two evaluations in the real environment, if there is one; what was learned is saved as often."""
    eval_episodes: int = 5
    """Real episodes of an evaluation."""
    eval_max_steps: int | None = None
    """Steps after which a real episode is cut off; by default the environment's own limit, or 1000."""
    patience: int = 4
    """Stop once so many evaluations since the best real one imagined more and got less; 0 never stops."""
    tensorboard: str | None = None
    """Folder for TensorBoard's curves."""
    seed: int = 0
    """Decides everything random."""
    settings: Suppress[Mapping[str, Any]] = field(default_factory=dict)
    """Further arguments of the algorithm, by Stable-Baselines3's names."""

    def __post_init__(self) -> None:
        for name in ("steps", "stack", "num_envs", "horizon", "num_starts", "eval_every", "eval_episodes"):
            check_count(name, getattr(self, name))
        check_count("first_horizon", self.horizon if self.first_horizon is None else self.first_horizon)
        if self.first_horizon is not None and self.first_horizon > self.horizon:
            raise ValueError(f"first_horizon must be at most the horizon {self.horizon}, got {self.first_horizon}")
        if not 0 <= self.curriculum <= 1:
            raise ValueError(f"curriculum must be a share of the training from 0 to 1, got {self.curriculum}")
        for name in ("entropy_penalty", "likelihood_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0 < self.discount < 1:
            raise ValueError(f"discount must lie between 0 and 1, got {self.discount}")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0, got {self.patience}")
        for name, kind in (("algorithm", Algorithm), ("observation", Observation)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {list(get_args(kind))}, got {getattr(self, name)!r}")

    def horizon_at(self, step: int) -> int:
        """Steps of an episode that is imagined after so many steps of training."""
        first, growth = self.first_horizon or self.horizon, self.curriculum * self.steps
        done = 1.0 if growth == 0 else min(1.0, step / growth)
        return round(first + done * (self.horizon - first))


def is_deceived(history: Sequence[Evaluation], *, patience: int) -> bool:
    """Whether a policy has learned what only the world believes.

    That is so if, since the evaluation with the greatest real return, `patience` ones of the same horizon promised more
    in the dream and gave less for real.

    Args:
        history: Evaluations, in order; those without an imagined and a real return do not count.
        patience: How many; 0 never says so.
    """
    known = [one for one in history if one.real_return is not None and one.imagined_return is not None]
    if not known or patience < 1:
        return False
    best = max(range(len(known)), key=lambda i: known[i].real_return or 0.0)
    since = [
        one
        for one in known[best + 1 :]
        if one.horizon == known[best].horizon
        and (one.imagined_return or 0.0) > (known[best].imagined_return or 0.0)
        and (one.real_return or 0.0) < (known[best].real_return or 0.0)
    ]
    return len(since) >= patience
