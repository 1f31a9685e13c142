"""`worldflow dream`: train a policy in a learned world."""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_format
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from tyro.conf import OmitArgPrefixes, Positional, arg

from worldflow.agents.dream_config import DreamConfig
from worldflow.agents.real_env import env_arguments, real_env
from worldflow.checkpoint import load

__all__ = ["DreamCommand"]


@dataclass(frozen=True, kw_only=True)
class DreamCommand:
    """Train a policy in a learned world, and look at it in the real environment now and then."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, as `worldflow train --out` wrote it, or the name of a world that ships."""
    out: str
    """The policy's file, AGENT.zip; AGENT.json beside it says what it sees and how its training went."""
    env: str | None = None
    """Real environment to evaluate in: a registered id such as worldflow/Reacher-v0, MODULE:ID, or `recorded` for the
    one that was recorded; by default none."""
    env_args: str = "{}"
    """Further arguments of the environment, as a JSON object."""
    settings: str = "{}"
    """Further arguments of the algorithm, by Stable-Baselines3's names, as a JSON object."""
    resume: bool = False
    """Go on from what an earlier call left, up to --steps."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to imagine; auto takes a GPU if there is one."""
    json: bool = False
    """Print the result as JSON."""
    config: OmitArgPrefixes[DreamConfig] = field(default_factory=DreamConfig)
    """How to train."""

    def __call__(self) -> dict[str, Any]:
        """Train."""
        from gymnasium import error as gym_error

        from worldflow.agents.dream import dream

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no GPU that torch can use; leave --device out or give cpu")
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        config = dataclasses.replace(self.config, settings=self._settings())
        with contextlib.ExitStack() as stack:
            env = None
            if self.env is not None:
                name = None if self.env == "recorded" else self.env
                try:
                    env = real_env(load(self.run), name, arguments=env_arguments(self.env_args))
                except gym_error.Error as error:  # such as a dependency that is not installed
                    raise ValueError(f"{self.env}: {error}") from error
                stack.enter_context(contextlib.closing(env))
            try:
                result = dream(self.run, self.out, config=config, env=env, resume=self.resume, device=device)
            except FileExistsError as error:
                raise ValueError(str(error)) from error
            except (RuntimeError, FloatingPointError) as error:
                raise ValueError("; ".join((str(error), *getattr(error, "__notes__", ())))) from error
        history = [dataclasses.asdict(one) for one in result.record.history]
        last = history[-1] if history else {}
        best = max((one["real_return"] for one in history if one["real_return"] is not None), default=None)
        found = {
            "agent": str(result.agent),
            "steps": result.record.steps,
            "imagined_return": last.get("imagined_return"),
            "best_step": result.record.best_step,
            "best_real_return": best,
            "stopped_early": result.is_deceived,
        }
        return found | {"history": history} if self.json else found

    def _settings(self) -> dict[str, Any]:
        with contextlib.suppress(json_format.JSONDecodeError):
            found = json_format.loads(self.settings)
            if isinstance(found, dict):
                return found
        raise ValueError(f"""--settings must be a JSON object such as '{{"n_epochs": 5}}', got {self.settings!r}""")
