"""How agents are compared."""

from __future__ import annotations

from dataclasses import dataclass

from worldflow.agents.rollout import check_count

__all__ = ["CompareConfig"]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How to compare; also the options of `worldflow compare`."""

    episodes: int = 20
    """Episodes that every contender plays, on the same seeds."""
    seed: int = 1000
    """Seed of the first episode; the next ones follow."""
    max_steps: int | None = None
    """Steps after which an episode is cut off; by default the environment's own limit, or 1000."""
    reference: str | None = None
    """Contender that all are held against; by default the one that learned from the most real steps."""
    starts: int = 20
    """Starts from which returns are imagined, too; 0 leaves this part out."""
    horizon: int | None = None
    """Steps for which they are; by default 50, or as many as an episode has left."""
    samples: int = 1
    """Imagined futures of each start, averaged."""
    noise: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    """Shares of random actions that agents are mixed with there, to have policies of many qualities."""
    start_policy: str | None = None
    """Who makes the first steps to a start, as for `worldflow collect`; by default who made the recordings, or
    `smooth` where nobody knows."""
    in_distribution: float = 1.0
    """Reward taken off the imagined return for each nat per dimension by which frames are less likely than usual."""

    def __post_init__(self) -> None:
        check_count("episodes", self.episodes)
        check_count("seed", self.seed, minimum=0)
        check_count("starts", self.starts, minimum=0)
        if self.horizon is not None:
            check_count("horizon", self.horizon)
        check_count("samples", self.samples)
        if self.max_steps is not None:
            check_count("max_steps", self.max_steps)
        if not all(0 <= share < 1 for share in self.noise) or not self.noise:
            raise ValueError(f"noise must hold shares of random actions in [0, 1), at least one, got {self.noise}")
        if not 0 <= self.in_distribution < float("inf"):
            raise ValueError(f"in_distribution must be at least 0 and finite, got {self.in_distribution}")
