"""State dicts as mappings, from memory or from a mapped file, of which one tensor is taken at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

if TYPE_CHECKING:
    import os

__all__ = ["count", "opened", "shape"]


UNMAPPED = "unable to mmap"
"""What torch says when the system refuses."""


class _Lazy(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, from the header alone."""
        return tuple(self._file.get_slice(name).get_shape())


@contextmanager
def opened(source: Mapping[str, Tensor] | str | os.PathLike[str]) -> Iterator[Mapping[str, Tensor]]:
    """A state dict, or the file that holds one: safetensors, or what `torch.save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or no plain state dict.
        MemoryError: If it is larger than the memory, and the system will not map such files.
    """
    if isinstance(source, Mapping):
        yield source
        return
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; name the file that was downloaded")
    if path.suffix == ".safetensors":
        try:
            mapped = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"cannot read {path}: {error}; it is damaged, fetch it again") from error
        except RuntimeError as error:
            raise (_unmapped(path) if UNMAPPED in str(error) else error) from error
        with mapped as file:
            yield _Lazy(file)
        return
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, UnpicklingError, BadZipFile, ValueError) as error:
        reason = str(error).splitlines()[0]
        if UNMAPPED in reason:
            raise _unmapped(path) from error
        raise ValueError(
            f"cannot read {path} as tensors ({reason}); it must be a state dict as `torch.save` writes it, and whole"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} must hold a plain state dict, names to tensors; take that part out and save it")
    yield found


def _unmapped(path: Path) -> MemoryError:
    size = path.stat().st_size / 1e9
    return MemoryError(
        f"the system will not map {path}, {size:.1f} GB, as that is more than its memory; use a machine with more, or "
        "have it map what it cannot hold (on Linux `sysctl vm.overcommit_memory=1`): weights are read as they are used"
    )


def shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a tensor, from the file's header where there is one.

    Raises:
        ValueError: If it is not there.
    """
    if name not in tensors:
        raise ValueError(f"the checkpoint has no {name!r}, which every model of this kind has; check kind and file")
    return tensors.shape(name) if isinstance(tensors, _Lazy) else tuple(tensors[name].shape)


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers stand at the place of the group in `pattern`."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})
