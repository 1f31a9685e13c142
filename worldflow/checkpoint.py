"""A run's folder: weights as safetensors, everything else as JSON, written so that nothing is ever half there.

- `run/world.json`: configuration, as `WorldConfig`, and how it was trained;
- `run/world.safetensors`: weights and statistics;
- `run/contexts.npz`: a small bank of recorded pasts to start from, compressed without loss.

Worlds that ship with the package are such folders too, with weights of half the width. The checkpoints of the
reference implementation are read by `read_released`, see `worldflow.released`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldflow.atomic import replacing, write_bytes
from worldflow.frames import Frames, as_tensors
from worldflow.released import read_released
from worldflow.shipped import run_folder
from worldflow.spaces import compact_space, full_space
from worldflow.world import Contexts, WorldConfig, WorldModel

__all__ = ["from_plain", "load", "read_released", "save", "to_plain"]

FORMAT = 1
FRAMES = "frames"
T = TypeVar("T")


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested dictionaries that JSON can hold."""
    return dataclasses.asdict(config)


def from_plain(kind: type[T], plain: Mapping[str, Any]) -> T:
    """The dataclass that `to_plain` made plain, nested dataclasses and tuples included.

    Raises:
        ValueError: If fields are missing or unknown.
    """
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := set(plain) - names:
        raise ValueError(f"{kind.__name__} has no {sorted(unknown)}; its fields are {sorted(names)}")
    try:
        return kind(**{name: _typed(hints[name], value) for name, value in plain.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__} cannot be built: {error}") from error


def _typed(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _typed(next(kind for kind in typing.get_args(hint) if kind is not type(None)), value)
    return tuple(value) if origin is tuple else value


def save(
    world: WorldModel,
    run: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a world to a run's folder.

    Args:
        world: The world.
        run: The folder; made if it does not exist.
        training: How it was trained; kept in `world.json` for people to read.
        dtype: Type in which weights are stored, `torch.float16` for files of half the size; by default their own. What
            is measured, not learned (statistics, the mean frame), keeps its own type, and so does a weight whose range
            the type does not hold. `load` gives float32 back in any case.

    Returns:
        The folder.

    Raises:
        ValueError: If `dtype` is no floating type.
        OSError: If it could not be written; what was there before is unharmed.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type such as torch.float16, got {dtype}")
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    learned = {name for name, _ in world.named_parameters()}
    tensors = {
        name: (tensor if dtype is None or name not in learned else _narrowed(tensor, dtype)).detach().cpu().contiguous()
        for name, tensor in world.state_dict().items()
    }
    config = to_plain(world.config)
    config["data"]["observation_space"] = compact_space(config["data"]["observation_space"])
    record = {"format": FORMAT, "config": config, "training": dict(training or {})}
    text = json.dumps(record, indent=1)

    try:
        with replacing(folder / "world.safetensors") as path:
            save_file(tensors, path)
    except SafetensorError as error:  # the library's word for a failed write
        raise OSError(f"cannot write {folder / 'world.safetensors'}: {error}; free some space") from error
    if world.contexts is not None:
        frames = world.contexts.frames.cpu().numpy()
        parts = frames.parts if isinstance(frames, Frames) else {}
        bank = {f"{FRAMES}/{name}": part for name, part in parts.items()} or {FRAMES: frames}
        bank["actions"] = world.contexts.actions.cpu().numpy()
        with replacing(folder / "contexts.npz") as path:
            np.savez_compressed(path, allow_pickle=False, **bank)
    write_bytes(folder / "world.json", text.encode())
    return folder


def load(run: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> WorldModel:
    """Read a world from a run's folder, ready to step.

    Args:
        run: The folder, or the name of a world that ships: `"worldflow/Reacher"`, see `worldflow.worlds`.
        device: Where to put it.

    Returns:
        The world in evaluation mode, its weights in float32 whatever they are stored in.

    Raises:
        FileNotFoundError: If the folder or a file of it is missing, or no world of this name ships.
        ValueError: If a file is damaged or does not fit this version, or a name is also a folder's.
    """
    folder = run_folder(run)
    description = folder / "world.json"
    if not description.is_file():
        reason = "the folder does not exist" if not folder.is_dir() else "it holds no world.json"
        raise FileNotFoundError(f"no world at {folder}: {reason}; name a folder that `worldflow train --out` wrote")
    try:
        record = json.loads(description.read_text())
        found = record["format"]
        if found != FORMAT:
            raise ValueError(f"it has format {found}, this version reads format {FORMAT}")
        record["config"]["data"]["observation_space"] = full_space(record["config"]["data"]["observation_space"])
        config = from_plain(WorldConfig, record["config"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {description}: {error}; train again or restore the file") from error

    weights = folder / "world.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"no weights at {weights}; restore the file or train again")
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"cannot read {weights}: {error}; it is damaged: restore it or train again") from error
    world = WorldModel(config)
    expected = world.state_dict()
    if missing := sorted(set(expected) - set(tensors)):
        raise ValueError(f"{weights} lacks {missing[:3]} of {len(expected)} tensors; it is another model's file")
    wrong = [name for name in tensors if name not in expected or tensors[name].shape != expected[name].shape]
    if wrong:
        raise ValueError(f"{weights} does not fit {description}: {sorted(wrong)[:3]} differ; restore both from one run")
    world.load_state_dict(tensors)
    world.contexts = _contexts(folder / "contexts.npz")
    return world.to(device).eval()


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another type, or as it is where that would cost more than the type's rounding.

    float16 overflows above 65504 and loses digits below 6e-5; a tensor of such numbers stays as it is.
    """
    narrow = tensor.to(dtype)
    error, size = (narrow.to(tensor.dtype) - tensor).abs(), tensor.abs()
    is_held = tensor.numel() == 0 or bool(error.max() <= torch.finfo(dtype).eps * size.max())
    return narrow if is_held else tensor


def _contexts(path: Path) -> Contexts | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as bank:
            names = [name for name in bank.files if name.startswith(f"{FRAMES}/")]
            parts = {name.removeprefix(f"{FRAMES}/"): bank[name] for name in names}
            return Contexts(frames=as_tensors(parts or bank[FRAMES]), actions=torch.from_numpy(bank["actions"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}; restore it or train again") from error
