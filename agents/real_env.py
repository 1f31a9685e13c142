"""The real environment of a world: the one that was recorded, or another one by its id."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from worldflow.world import WorldModel

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = ["env_arguments", "real_env", "real_env_id"]


def real_env(
    world: WorldModel, env_id: str | None = None, *, arguments: Mapping[str, Any] | None = None
) -> gym.Env[Any, Any]:
    """Make the named environment in the size that the world sees, or the recorded one with the arguments it had.

    Args:
        world: The world.
        env_id: A registered id, or `MODULE:ID`; None for the recorded one.
        arguments: Further arguments of the environment.

    Raises:
        ValueError: If there is no such environment, or none is named and the recordings do not say.
    """
    import gymnasium as gym
    from gymnasium.envs.registration import EnvSpec

    from worldflow.envs.making import make_env
    from worldflow.envs.tasks import TASKS

    given, recorded = dict(arguments or {}), world.config.data.env_spec
    name = real_env_id(world, env_id)
    if recorded is not None and name == json.loads(recorded)["id"]:
        return gym.make(EnvSpec.from_json(recorded), **given)
    data, size = world.config.data, world.config.data.frame_shape[0]
    if not data.is_vector and name.rpartition(":")[2] in {f"worldflow/{task}-v0" for task in TASKS}:
        given = {"size": size, **given}
    return make_env(name, observed=data.observed, size=size, env_kwargs=given)


def real_env_id(world: WorldModel, env_id: str | None = None) -> str:
    """The name of the environment that `real_env` makes.

    Raises:
        ValueError: If none is named and the recordings do not say.
    """
    recorded = world.config.data.env_spec
    if env_id is None and recorded is None:
        raise ValueError("the recordings do not say which environment they are of; name one with --env")
    return env_id if env_id is not None else str(json.loads(recorded or "{}")["id"])


def env_arguments(text: str) -> dict[str, Any]:
    """What `--env-args` says.

    Raises:
        ValueError: If it is no JSON object.
    """
    with contextlib.suppress(json.JSONDecodeError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    raise ValueError(f"""--env-args must be a JSON object such as '{{"size": 64}}', got {text!r}""")
