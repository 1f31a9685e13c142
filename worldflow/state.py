"""The state of a world: a value that can be copied, branched, indexed, joined, stored and sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

__all__ = ["WorldState"]


@dataclass(frozen=True, kw_only=True)
class WorldState:
    """All that the flow remembers of the past. Nothing ever writes into it.

    Every field has the batch in its first axis, so states are indexed, repeated and joined row by row.

    Args:
        deep_keys, deep_values: Rolling cache of the deep block.
        draft_keys, draft_values: Rolling cache of the drafter.
        latents: `u` of the last two frames, oldest first; or the codes of what was shown of them.
        mean: Running mean of the same over all frames seen, from which what stands still is known.
        count: Frames seen.
    """

    deep_keys: Float[Tensor, "batch layer head slot feature"]
    deep_values: Float[Tensor, "batch layer head slot feature"]
    draft_keys: Float[Tensor, "batch draft_layer draft_head draft_slot feature"]
    draft_values: Float[Tensor, "batch draft_layer draft_head draft_slot feature"]
    latents: Float[Tensor, "batch 2 token latent"]
    mean: Float[Tensor, "batch token latent"]
    count: Int64[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> WorldState:
        """The named rows; a single row stays a batch of one."""
        if isinstance(index, int):
            index = [index]
        return self._map(lambda tensor: tensor[index])

    def fork(self) -> WorldState:
        """A branch of the same past. As states are values it costs nothing and shares its memory."""
        return self

    def repeat(self, k: int) -> WorldState:
        """Each row `k` times: `a, b -> a, a, .., b, b, ..`. Copies of a single row share its memory."""
        if len(self) == 1:
            return self._map(lambda tensor: tensor.expand(k, *tensor.shape[1:]))
        return self._map(lambda tensor: tensor.repeat_interleave(k, dim=0))

    def replace(self, rows: Sequence[int], new: WorldState) -> WorldState:
        """The same state with some rows exchanged for the rows of `new`, in order."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.count.device)
        return WorldState(
            **{name: old.index_copy(0, index, new.tensors()[name]) for name, old in self.tensors().items()}
        )

    @staticmethod
    def cat(states: Sequence[WorldState]) -> WorldState:
        """Rows of several states, one behind the other."""
        return WorldState(**{name: torch.cat([s.tensors()[name] for s in states]) for name in states[0].tensors()})

    def to(self, device: torch.device | str) -> WorldState:
        """The same state on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to_bytes(self) -> bytes:
        """The state as bytes (safetensors)."""
        return save_tensors({name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()})

    @staticmethod
    def from_bytes(data: bytes) -> WorldState:
        """The state that `to_bytes` wrote, on the CPU.

        Raises:
            ValueError: If the bytes are something else.
        """
        try:
            tensors = load_tensors(data)
        except SafetensorError as error:
            raise ValueError(f"these bytes hold no WorldState: {error}; write them with WorldState.to_bytes") from None
        expected = {f.name for f in fields(WorldState)}
        if set(tensors) != expected:
            raise ValueError(f"a WorldState has the tensors {sorted(expected)}, these bytes hold {sorted(tensors)}")
        return WorldState(**tensors)

    def _map(self, function: Callable[[Tensor], Tensor]) -> WorldState:
        return WorldState(**{name: function(tensor) for name, tensor in self.tensors().items()})
