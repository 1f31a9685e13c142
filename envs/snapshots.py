"""A moment of imagined episodes, whole: a value to return to, to branch from, to store and to send.

It holds all that the episodes' future depends on: the world's memory, the last frames, both random streams of each
row, and how far each episode is. The memory is that of the episodes themselves, which never write into it: taking a
snapshot copies no cache, and branches of one row share its memory until each has made steps of its own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from gymnasium.utils import seeding

from worldflow.frames import Frames, together
from worldflow.state import WorldState

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64, UInt8

__all__ = ["Snapshot"]

_ARRAYS = ("frames", "is_drawn", "elapsed", "limits", "ended")


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A moment of episodes side by side, one row each; rows are picked, repeated and joined.

    It pickles, as the bytes of `to_bytes`, and fits any environment of the same world, also on another machine.

    Args:
        state: What the world remembers.
        unconditional: The same without actions, where guidance goes away from them.
        generators: States of the torch generators that draw transitions.
        numbers: States of the NumPy generators that pick pasts.
        frames: Last frames.
        is_drawn: Whether a row's frame has been decoded; it follows from the state where not.
        elapsed: Steps taken.
        limits: Steps after which a row's episode is truncated.
        ended: Whether a row's episode has ended.
    """

    state: WorldState
    unconditional: WorldState | None
    generators: UInt8[np.ndarray, "episode byte"]
    numbers: tuple[Mapping[str, Any], ...]
    frames: UInt8[np.ndarray, "episode row column channel"]
    is_drawn: Bool[np.ndarray, " episode"]
    elapsed: Int64[np.ndarray, " episode"]
    limits: Int64[np.ndarray, " episode"]
    ended: Bool[np.ndarray, " episode"]

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Snapshot:
        """Some of the rows; a single one stays a batch of one."""
        rows = np.atleast_1d(np.arange(len(self))[index])
        whole = len(rows) == len(self) and (rows == np.arange(len(self))).all()
        return self if whole else self._rows(rows, lambda state: state[rows.tolist()])

    def repeat(self, k: int) -> Snapshot:
        """Each row `k` times, `a, a, .., b, b, ..`, random streams included: the same actions, the same future."""
        return self._rows(np.arange(len(self)).repeat(k), lambda state: state.repeat(k))

    def reseeded(self, seeds: Sequence[int]) -> Snapshot:
        """The same moment with random streams of their own, one seed a row: those of `reset(seed=)`."""
        if len(seeds) != len(self):
            raise ValueError(f"expected {len(self)} seeds, one a row, got {len(seeds)}")
        pairs = [_streams(seed) for seed in seeds]
        return replace(
            self,
            numbers=tuple(numbers.bit_generator.state for numbers, _ in pairs),
            generators=np.stack([generator.get_state().numpy() for _, generator in pairs]),
        )

    def branched(self, k: int, *, seed: int | None = None) -> Snapshot:
        """Each row `k` times with random streams of their own; without a seed they follow from the row's own stream."""
        if seed is None:
            sources = self.random()
        else:
            sources = [np.random.default_rng([seed, i]) for i in range(len(self))]
        return self.repeat(k).reseeded([int(s) for source in sources for s in source.integers(2**63, size=k)])

    def random(self) -> list[np.random.Generator]:
        """New generators that pick pasts as the rows' own do."""
        return [_restored(state) for state in self.numbers]

    @staticmethod
    def cat(snapshots: Sequence[Snapshot]) -> Snapshot:
        """Rows of several snapshots, one behind the other.

        Raises:
            ValueError: If some are guided and some are not.
        """
        without = [one.unconditional for one in snapshots if one.unconditional is not None]
        if len(without) not in (0, len(snapshots)):
            raise ValueError("snapshots with and without guidance cannot be joined")
        arrays = {name: together(np.concatenate, [getattr(one, name) for one in snapshots]) for name in _ARRAYS}
        return Snapshot(
            state=WorldState.cat([one.state for one in snapshots]),
            unconditional=WorldState.cat(without) if without else None,
            generators=np.concatenate([one.generators for one in snapshots]),
            numbers=tuple(state for one in snapshots for state in one.numbers),
            **arrays,
        )

    def to_bytes(self) -> bytes:
        """The snapshot as bytes."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        if isinstance(self.frames, Frames):
            parts |= {f"frames/{name}": part for name, part in parts.pop("frames").parts.items()}
        for name, state in (("state", self.state), ("unconditional", self.unconditional)):
            if state is not None:
                parts[name] = np.frombuffer(state.to_bytes(), np.uint8)
        file = io.BytesIO()
        np.savez(file, numbers=np.array(json.dumps(self.numbers)), generators=self.generators, **parts)
        return file.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Snapshot:
        """The snapshot that `to_bytes` wrote, on the CPU.

        Raises:
            ValueError: If the bytes are something else, or damaged.
        """
        try:
            with np.load(io.BytesIO(data)) as file:
                parts = {name.removeprefix("frames/"): file[name] for name in file.files if name.startswith("frames/")}
                made = Snapshot(
                    state=WorldState.from_bytes(file["state"].tobytes()),
                    unconditional=WorldState.from_bytes(file["unconditional"].tobytes())
                    if "unconditional" in file
                    else None,
                    numbers=tuple(json.loads(str(file["numbers"]))),
                    generators=file["generators"],
                    frames=Frames(parts) if parts else file["frames"],  # type: ignore[arg-type]
                    **{name: file[name] for name in _ARRAYS if name != "frames"},
                )
                made.random()
                return made
        except (BadZipFile, OSError, EOFError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"these bytes hold no snapshot ({error}); read what Snapshot.to_bytes returned") from error

    def __reduce__(self) -> tuple[Callable[[bytes], Snapshot], tuple[bytes]]:
        return Snapshot.from_bytes, (self.to_bytes(),)

    def _rows(self, rows: np.ndarray, of_state: Callable[[WorldState], WorldState]) -> Snapshot:
        return Snapshot(
            state=of_state(self.state),
            unconditional=None if self.unconditional is None else of_state(self.unconditional),
            generators=self.generators[rows],
            numbers=tuple(self.numbers[i] for i in rows),
            **{name: getattr(self, name)[rows] for name in _ARRAYS},
        )


def _streams(seed: int) -> tuple[np.random.Generator, torch.Generator]:
    """Both random streams of an episode, as `reset(seed=)` starts them."""
    numbers, _ = seeding.np_random(seed)
    return numbers, torch.Generator().manual_seed(int(numbers.integers(2**63)))


def _restored(state: Mapping[str, Any]) -> np.random.Generator:
    numbers, _ = seeding.np_random(0)
    numbers.bit_generator.state = state
    return numbers
