"""`worldflow compare`: agents beside each other in the real environment, imagined returns beside real ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from worldflow.agents.compare_config import CompareConfig
from worldflow.agents.real_env import env_arguments

__all__ = ["CompareCommand"]


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Hold agents against each other in the real environment, and their imagined returns against real ones."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, as `worldflow train --out` wrote it, or the name of a world that ships."""
    out: str
    """Folder for report.html and evidence.json; the same call goes on with what it finds there."""
    contenders: tuple[str, ...] = ("random", "recorded")
    """Who plays, each one word or quoted: random, smooth, MODULE:CALLABLE, an agent's FILE.zip, `recorded` for who made
    the recordings, "plan OPTIONS" with those of `worldflow plan`, "train OPTIONS" for an agent that is trained in the
    real environment (--algorithm, --steps, --observation; `worldflow.agents.real_training`). NAME= before it names
    it."""
    env: str | None = None
    """A registered id such as worldflow/Reacher-v0, or MODULE:ID; by default the environment that was recorded."""
    env_args: str = "{}"
    """Further arguments of the environment, as a JSON object."""
    json: bool = False
    """Print everything as JSON."""
    config: OmitArgPrefixes[CompareConfig] = field(default_factory=CompareConfig)
    """How to compare."""

    def __call__(self) -> dict[str, Any]:
        """Compare."""
        from gymnasium import error as gym_error

        from worldflow.agents.evaluate import compare

        try:
            evidence = compare(
                self.run,
                out=self.out,
                contenders=self.contenders,
                env=self.env,
                env_args=env_arguments(self.env_args),
                config=self.config,
            )
        except gym_error.Error as error:  # such as a dependency that is not installed
            raise ValueError(f"{self.env}: {error}") from error
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        files = {"report": str(Path(self.out) / "report.html"), "numbers": str(Path(self.out) / "evidence.json")}
        if self.json:
            return files | evidence.to_plain()
        shown: dict[str, Any] = {one.name: one.mean.text() for one in evidence.standings}
        if evidence.agreement is not None:
            shown["rank correlation, imagined against real"] = evidence.agreement.rank.text(".2f")
        return shown | files
