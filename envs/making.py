"""Making environments to record from, to start from or to act in: by pixels, by the vector they observe, or by both."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium import spaces
from minari.serialization import serialize_space

from worldflow.envs.parts import PixelsAndState
from worldflow.envs.tasks import PixelObservation
from worldflow.hints import did_you_mean
from worldflow.spaces import data_spec, frame_shape

__all__ = ["Observed", "make_dict_env", "make_env", "make_pixel_env", "make_vector_env", "serialized"]

Observed = Literal["pixels", "vector", "dict"]
"""What is observed of an environment: `pixels`, rendered where it observes none; `vector`, what it observes itself, a
floating Box of one axis; `dict`, a Dict of one picture and vectors as it observes them, or, where it observes a vector,
`{"pixels": ..., "state": ...}` of both."""


def make_env(
    env: str | gym.Env[Any, Any],
    *,
    observed: Observed,
    size: int = 64,
    env_kwargs: Mapping[str, Any] | None = None,
) -> gym.Env[Any, Any]:
    """Make an environment that is observed so.

    Args:
        env: A registered id, or an environment.
        observed: What is observed.
        size: Rows and columns of rendered frames.
        env_kwargs: Arguments of the environment, if `env` is an id.

    Raises:
        ValueError: There is no such id, or it cannot be observed so.
    """
    match observed:
        case "pixels":
            return make_pixel_env(env, size=size, env_kwargs=env_kwargs)
        case "vector":
            return make_vector_env(env, env_kwargs=env_kwargs)
        case "dict":
            return make_dict_env(env, size=size, env_kwargs=env_kwargs)
        case _:
            raise ValueError(f"observation must be one of {', '.join(get_args(Observed))}, got {observed!r}")


def make_pixel_env(
    env: str | gym.Env[Any, Any], *, size: int = 64, env_kwargs: Mapping[str, Any] | None = None
) -> gym.Env[Any, Any]:
    """Make an environment that observes images, rendering it where it does not.

    Args:
        env: A registered id, or an environment.
        size: Rows and columns of rendered frames.
        env_kwargs: Arguments of the environment, if `env` is an id.

    Raises:
        ValueError: There is no such id, or it can neither observe images nor render `rgb_array`.
    """
    if not isinstance(env, str):
        _check_env(env, env_kwargs)
        return env if _axes(env) == 3 else PixelObservation(env, size=size)
    kwargs = dict(env_kwargs or {})
    made = _make(env, kwargs)
    if _axes(made) == 3:
        return made
    modes = made.metadata.get("render_modes", [])
    made.close()
    if "rgb_array" not in modes:
        raise ValueError(
            f"{env} neither observes uint8 images nor renders rgb_array (its modes: {modes}); "
            "wrap it so that it does, and pass the environment"
        )
    return PixelObservation(_make(env, {**kwargs, "render_mode": "rgb_array"}), size=size)


def make_vector_env(env: str | gym.Env[Any, Any], *, env_kwargs: Mapping[str, Any] | None = None) -> gym.Env[Any, Any]:
    """Make an environment that observes a vector.

    Args:
        env: A registered id, or an environment.
        env_kwargs: Arguments of the environment, if `env` is an id.

    Raises:
        ValueError: There is no such id, or it does not observe a floating Box of one axis.
    """
    made = _made(env, env_kwargs)
    if _axes(made) != 1:
        if isinstance(env, str):
            made.close()
        raise ValueError(
            f"{env} observes {made.observation_space}, not a vector (a Box of one axis, float32 or float64); record "
            "its pixels, or wrap it in gymnasium.wrappers.FlattenObservation and pass the environment"
        )
    return made


def make_dict_env(
    env: str | gym.Env[Any, Any], *, size: int = 64, env_kwargs: Mapping[str, Any] | None = None
) -> gym.Env[Any, Any]:
    """Make an environment that observes a Dict of one picture and vectors.

    Args:
        env: A registered id, or an environment.
        size: Rows and columns of rendered frames.
        env_kwargs: Arguments of the environment, if `env` is an id.

    Raises:
        ValueError: There is no such id, or it offers no picture, or no vector beside it.
    """
    made = _made(env, env_kwargs)
    if isinstance(made.observation_space, spaces.Dict):
        data_spec(serialized(made.observation_space), serialized(made.action_space))  # says what is wrong with them
        return made
    if isinstance(env, str):
        made.close()
    return PixelsAndState(make_pixel_env(env, size=size, env_kwargs=env_kwargs))


def serialized(space: gym.Space[Any]) -> str:
    """A space as Minari's JSON.

    Raises:
        ValueError: If Minari knows none for it.
    """
    try:
        return str(serialize_space(space))
    except NotImplementedError as error:
        raise ValueError(f"Minari cannot store the space {space}") from error


def _check_env(env: Any, env_kwargs: Mapping[str, Any] | None) -> None:
    if not isinstance(env, gym.Env):
        raise TypeError(f"env must be an id or a Gymnasium environment, got {type(env).__name__}")
    if env_kwargs:
        raise ValueError("env_kwargs are arguments for an id; pass an environment that is made with them")


def _made(env: str | gym.Env[Any, Any], env_kwargs: Mapping[str, Any] | None) -> gym.Env[Any, Any]:
    """The environment of an id, or the one that is given."""
    if isinstance(env, str):
        return _make(env, dict(env_kwargs or {}))
    _check_env(env, env_kwargs)
    return env


def _make(env_id: str, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
            raise ValueError(f"environment {env_id!r}: there is no module {module!r}; install it") from error
    try:
        gym.spec(name)
    except gym.error.Error as error:
        hint = did_you_mean(name, gym.registry, otherwise="is its package imported? use module:id", at_most=3)
        raise ValueError(f"unknown environment {env_id!r}{hint}") from error
    try:
        return gym.make(name, **kwargs)
    except TypeError as error:
        raise ValueError(f"environment {env_id!r} does not take the arguments {kwargs} ({error})") from error


def _axes(env: gym.Env[Any, Any]) -> int:
    """Axes of what it observes: 3 of images, 1 of vectors, 0 of anything else."""
    try:
        return len(frame_shape(serialized(env.observation_space)))
    except ValueError:
        return 0
