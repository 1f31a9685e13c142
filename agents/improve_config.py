"""How to go round: recording, learning the world, learning to act in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tyro.conf import Suppress

from worldflow.agents.dream_config import DreamConfig
from worldflow.agents.rollout import check_count
from worldflow.recipes import TrainConfig

__all__ = ["ImproveConfig"]


@dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """How to go round; also the options of `worldflow improve`."""

    rounds: int = 3
    """Rounds in all; a later call may ask for more."""
    episodes: int = 100
    """Real episodes recorded in the first round, half of them by each of the two first policies."""
    more_episodes: int = 50
    """Real episodes that the agent adds in each round after it."""
    first_policies: tuple[str, ...] = ("smooth", "random")
    """Who records in the first round, in equal shares, as for `worldflow collect`."""
    explore: float = 0.2
    """Share of random actions while an agent records, so that the data show what it would not do."""
    max_steps: int | None = None
    """Steps after which a recorded episode is cut off; by default the environment's own limit, or 1000."""
    size: int = 64
    """Rows and columns of a frame, where the environment has to be rendered."""
    keep_codec: bool = False
    """Take the codec of the first world over into the later ones, which saves its training; new places then look as the
    first recordings taught it."""
    eval_episodes: int = 20
    """Real episodes of each round's agent for the log; nothing learns from them."""
    eval_seed: int = 1000
    """Seed of the first of them."""
    seed: int = 0
    """Of the recordings; worlds and agents have their own."""
    train: Suppress[TrainConfig] = field(default_factory=lambda: TrainConfig(preset="tiny", batch=32, minutes=20.0))
    """How to learn the world, the same in each round."""
    dream: Suppress[DreamConfig] = field(default_factory=DreamConfig)
    """How to train the agent, the same in each round."""

    def __post_init__(self) -> None:
        for name in ("rounds", "more_episodes", "size", "eval_episodes"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, minimum=0)
        check_count("eval_seed", self.eval_seed, minimum=0)
        if not self.first_policies:
            raise ValueError("first_policies must name at least one policy, got none")
        check_count("episodes", self.episodes, minimum=max(2, len(self.first_policies)))
        if not 0 <= self.explore <= 1:
            raise ValueError(f"explore must be a share of actions from 0 to 1, got {self.explore}")
