"""`worldflow improve`: record, learn the world, learn to act in it, record with what was learned, and again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from worldflow.agents.dream_config import DreamConfig
from worldflow.agents.improve_config import ImproveConfig
from worldflow.agents.real_env import env_arguments
from worldflow.recipes import TrainConfig

__all__ = ["ImproveCommand"]


@dataclass(frozen=True, kw_only=True)
class ImproveCommand:
    """Alternate recording with the current agent, learning the world from all data, and training the agent in it."""

    env_id: Positional[Annotated[str, arg(metavar="ENV_ID")]]
    """A registered id such as worldflow/Reacher-v0, or MODULE:ID to import a module first."""
    out: str
    """Folder of recordings, worlds, agents and log.json; the same call goes on with what it finds there."""
    env_args: str = "{}"
    """Further arguments of the environment, as a JSON object."""
    json: bool = False
    """Print the result as JSON."""
    config: OmitArgPrefixes[ImproveConfig] = field(default_factory=ImproveConfig)
    """How to go round."""
    train: TrainConfig = field(default_factory=lambda: ImproveConfig().train)
    """How to learn the world in each round."""
    dream: DreamConfig = field(default_factory=DreamConfig)
    """How to train the agent in it."""

    def __call__(self) -> dict[str, Any]:
        """Go round."""
        from gymnasium import error as gym_error

        from worldflow.agents.improve import improve

        config = replace(self.config, train=self.train, dream=self.dream)
        try:
            rounds = improve(self.env_id, out=self.out, config=config, env_args=env_arguments(self.env_args))
        except gym_error.Error as error:  # such as a dependency that is not installed
            raise ValueError(f"{self.env_id}: {error}") from error
        if self.json:
            return {"rounds": [one.to_plain() for one in rounds]}
        return {
            f"round {one.number}, {one.real_steps} real steps": f"return {one.real_return.text()}" for one in rounds
        }
