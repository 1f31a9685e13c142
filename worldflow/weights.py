"""One network in one safetensors file: its weights and statistics, and in the header what it was built with.

A world is a folder (`worldflow.checkpoint`), because people look into it. The instruments that measure worlds are
caches, made again when they are missing or stale, and a single file cannot be half there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worldflow.atomic import replacing

__all__ = ["load_weights", "read_weights", "sharing", "write_weights"]

FORMAT = 1
M = TypeVar("M", bound=nn.Module)


def write_weights(path: str | os.PathLike[str], module: nn.Module, *, kind: str, header: Mapping[str, Any]) -> Path:
    """Write a network, whole or not at all.

    Args:
        path: The file to make or replace; missing parent folders are made.
        module: The network.
        kind: What it is; `read_weights` refuses any other.
        header: What it was built with, anything that JSON holds.

    Returns:
        `path` as a `Path`.

    Raises:
        OSError: If it cannot be written; what was there before is unharmed.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    record = json.dumps({"format": FORMAT, "kind": kind, **header})
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"worldflow": record})
    except SafetensorError as error:  # the library's word for a failed write
        raise OSError(f"cannot write {path}: {error}; free some space or choose another folder") from error
    return Path(path)


def read_weights(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_weights` wrote.

    Args:
        path: The file.
        kind: What it must be.

    Returns:
        The header, and the tensors by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another kind or of another version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {kind} at {path}; name a file that its `save` wrote, or fit a new one")
    try:
        with safe_open(path, framework="pt") as file:
            record = (file.metadata() or {}).get("worldflow")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        header = json.loads(record) if record is not None else {}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}; it is damaged: delete it and fit a new one") from error
    found, version = header.get("kind"), header.get("format")
    if found != kind or version != FORMAT:
        raise ValueError(
            f"{path} must hold a {kind} of format {FORMAT}, got {found or 'something else'} of format {version}; "
            "name another file, or fit a new one"
        )
    return header, tensors


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, path: str | os.PathLike[str]) -> None:
    """Put tensors into the network they were written from.

    Raises:
        ValueError: If names or shapes differ.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its own header ({error}); delete it and fit a new one") from error


def sharing(make: Callable[[], M], source: nn.Module) -> M:
    """The module that `make` builds, with the very parameters and persistent buffers of `source`.

    Nothing is drawn, copied or initialized, whatever the size; what is trained in one is trained in both.
    """
    with torch.device("meta"):
        module = make()
    for own, theirs in zip(module.parameters(), source.parameters(), strict=True):
        own.requires_grad_(theirs.requires_grad)  # or taking over a parameter would set it
    module.load_state_dict(source.state_dict(keep_vars=True), assign=True)
    device = next(iter(source.parameters())).device
    return module.to(device).train(source.training)
