"""Spaces as plain numbers: what Minari's JSON says about frames and actions, without a simulator.

Minari stores `observation_space` and `action_space` of a data set as JSON. `data_spec` reads them, so that a training
node needs neither Gymnasium nor Minari, and `check_compatible` tells what is different between the spaces a model was
trained for and the ones a data set holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from worldflow.types import ActionSpec, DataSpec, PartsSpec

__all__ = [
    "action_spec",
    "check_compatible",
    "compact_space",
    "data_spec",
    "differences",
    "frame_shape",
    "full_space",
]

_REMEDY = "record the task from pixels with `worldflow collect`, or wrap it so that it returns images or a vector"


def data_spec(
    observation_space: str, action_space: str, *, env_spec: str | None = None, dataset_id: str = ""
) -> DataSpec:
    """Read what is observed and done from serialized spaces.

    Args:
        observation_space: As JSON: a Box as for `frame_shape`, or a Dict of one picture and at least one vector.
        action_space: As JSON, as for `action_spec`.
        env_spec: The environment's specification as JSON, if there is one.
        dataset_id: Name of the data set.

    Raises:
        ValueError: A space is of another kind.
    """
    shape, parts = _dict_parts(observation_space) or (frame_shape(observation_space), None)
    return DataSpec(
        frame_shape=shape,
        parts=parts,
        action=action_spec(action_space),
        observation_space=observation_space,
        action_space=action_space,
        env_spec=env_spec,
        dataset_id=dataset_id,
    )


def frame_shape(space: str) -> tuple[int, ...]:
    """Read the shape of a frame from a serialized observation space, which is no Dict.

    Args:
        space: The space as JSON. It must be a `uint8` Box `(row, column)` or `(row, column, channel)` with
            1 or 3 channels, where a gray picture without a channel axis gets one; or a floating Box `(number,)`.

    Returns:
        `(row, column, channel)` of pictures, `(number,)` of vectors.

    Raises:
        ValueError: The observations are neither images nor vectors.
    """
    data = _load(space, "observation")
    if data["type"] != "Box":
        raise ValueError(f"observations must be uint8 images or float vectors, got a {data['type']} space; {_REMEDY}")
    shape, dtype = tuple(data["shape"]), data["dtype"]
    if dtype in ("float32", "float64") and len(shape) == 1 and 0 not in shape:
        return shape
    if dtype == "uint8" and len(shape) == 2:
        shape = (*shape, 1)
    if dtype != "uint8" or len(shape) != 3 or shape[-1] not in (1, 3) or 0 in shape:
        raise ValueError(
            "observations must be uint8 images of shape (row, column), (row, column, 1) or (row, column, 3), "
            "or float32 or float64 vectors of shape (number,), "
            f"got a Box of {dtype} and shape {tuple(data['shape'])}; {_REMEDY}"
        )
    return shape


def action_spec(space: str) -> ActionSpec:
    """Read an action's description from a serialized action space.

    Args:
        space: A Box, Discrete, MultiDiscrete or MultiBinary space as JSON.

    Returns:
        The description.

    Raises:
        ValueError: The space is of another type.
    """
    data = _load(space, "action")
    match data["type"]:
        case "Box":
            shape = tuple(data["shape"])
            low, high = (np.broadcast_to(np.asarray(data[key], dtype=float), shape) for key in ("low", "high"))
            return ActionSpec(shape=shape, dtype=data["dtype"], low=_floats(low), high=_floats(high))
        case "Discrete":
            return ActionSpec(shape=(), dtype="int64", choices=(int(data["n"]),), first=(int(data.get("start", 0)),))
        case "MultiDiscrete":
            choices = np.asarray(data["nvec"])
            first = np.asarray(data.get("start", np.zeros_like(choices)))
            dtype = data.get("dtype", "int64")
            return ActionSpec(shape=choices.shape, dtype=dtype, choices=_ints(choices), first=_ints(first))
        case "MultiBinary":
            shape = tuple(np.atleast_1d(data["n"]).tolist())
            size = int(np.prod(shape, dtype=int))
            return ActionSpec(shape=shape, dtype="int8", choices=(2,) * size, first=(0,) * size)
        case other:
            raise ValueError(
                f"actions must come from a Box, Discrete, MultiDiscrete or MultiBinary space, got {other}; "
                "flatten them with gymnasium.wrappers.TransformAction before recording"
            )


def compact_space(space: str) -> str:
    """A serialized space in which the limits of each Box that are all the same stand once; `full_space` undoes it.

    A picture's limits, number by number, take a hundred kilobytes. A space that could not be restored to the last
    character stays as it is.
    """

    def once(box: dict[str, Any]) -> dict[str, Any]:
        limits = {key: np.asarray(box[key]) for key in ("low", "high")}
        same = {key: v.flat[0].item() for key, v in limits.items() if v.size > 1 and (v == v.flat[0]).all()}
        return box | same

    compact = json.dumps(_boxes(json.loads(space), once))
    return compact if full_space(compact) == space else space


def full_space(space: str) -> str:
    """What `compact_space` made compact, as Minari serializes it; other spaces stay as they are."""

    def each(box: dict[str, Any]) -> dict[str, Any]:
        single = [key for key in ("low", "high") if isinstance(box[key], (int, float)) and box["shape"]]
        return box | {key: np.full(box["shape"], box[key], dtype=object).tolist() for key in single}

    data = json.loads(space)
    full = _boxes(data, each)
    return space if full == data else json.dumps(full)


def _boxes(data: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The space with each of its boxes changed."""
    if isinstance(data, list):
        return [_boxes(part, change) for part in data]
    if not isinstance(data, dict):
        return data
    if data.get("type") == "Box" and {"low", "high", "shape"} <= data.keys():
        return change(data)
    return {key: _boxes(part, change) for key, part in data.items()}


def check_compatible(spec: DataSpec, other: DataSpec) -> None:
    """Refuse a data set whose spaces differ from the expected ones.

    Args:
        spec: What is expected, for example a checkpoint's.
        other: What is given.

    Raises:
        ValueError: The frames or the actions differ; the message names every difference. Number formats of
            the same kind (float32 and float64) do not count.
    """
    found = differences(spec, other)
    if found:
        name = f" {other.dataset_id!r}" if other.dataset_id else ""
        raise ValueError(
            f"the data set{name} has other spaces than expected: {'; '.join(found)}. "
            "Use data recorded from the same environment with the same arguments, or train a new model on it"
        )


def differences(spec: DataSpec, other: DataSpec) -> list[str]:
    """What is different between the spaces of two data sets or environments, a line each."""
    found = []
    if (spec.frame_shape, spec.parts) != (other.frame_shape, other.parts):
        expected, given = (one.frame_shape if one.parts is None else one.part_shapes for one in (spec, other))
        found.append(f"frames: expected shape {expected}, got {given}")
    ours, theirs = spec.action, other.action
    if ours.is_discrete != theirs.is_discrete:
        found.append(f"actions: expected {_kind(ours)} ones, got {_kind(theirs)} ones")
    elif ours.shape != theirs.shape:
        found.append(f"actions: expected shape {ours.shape}, got {theirs.shape}")
    else:
        found += [
            f"{what}: expected {getattr(ours, name)}, got {getattr(theirs, name)}"
            for name, what in {
                "choices": "number of choices of an action",
                "first": "smallest values of an action",
                "low": "lower bounds of an action",
                "high": "upper bounds of an action",
            }.items()
            if not _same(getattr(ours, name), getattr(theirs, name))
        ]
    return found


def _dict_parts(space: str) -> tuple[tuple[int, ...], PartsSpec] | None:
    """The shape of the picture in a Dict, and what all of its parts are; None of other spaces."""
    data = _load(space, "observation")
    if data["type"] != "Dict":
        return None
    shapes = {}
    for name, inner in sorted(data["subspaces"].items()):
        try:
            shapes[name] = frame_shape(json.dumps(inner))
        except ValueError as error:
            raise ValueError(f"observations are a Dict whose {name!r} cannot be learned: {error}") from error
    pictures = [name for name, shape in shapes.items() if len(shape) == 3]
    vectors = tuple(name for name, shape in shapes.items() if len(shape) == 1)
    if len(pictures) != 1 or not vectors:
        remedy = {
            (0, True): "flatten it to one vector with gymnasium.wrappers.FlattenObservation",
            (1, False): "observe the picture alone, without a Dict",
        }.get((len(pictures), bool(vectors)), "keep one picture with gymnasium.wrappers.FilterObservation")
        raise ValueError(
            f"observations in a Dict must be one picture and at least one vector, got the pictures {pictures} and the "
            f"vectors {list(vectors)}; {remedy}"
        )
    sizes = tuple(shapes[name][0] for name in vectors)
    return shapes[pictures[0]], PartsSpec(picture=pictures[0], vectors=vectors, numbers=sizes)


def _load(space: str, what: str) -> dict[str, Any]:
    try:
        data = json.loads(space)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the {what} space must be Minari's JSON for a space, got {space!r}") from error
    if not isinstance(data, dict) or "type" not in data:
        raise ValueError(f"the {what} space must be Minari's JSON for a space, got {space!r}")
    return data


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values.reshape(-1))


def _ints(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values.reshape(-1))


def _kind(spec: ActionSpec) -> str:
    return "discrete" if spec.is_discrete else "continuous"


def _same(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
    # Bounds recorded as float32 come back from JSON with the digits of float64.
    return len(left) == len(right) and bool(np.allclose(left, right, rtol=1e-6, atol=0.0))
