"""What imagined episodes take of a machine's memory, known before any is taken."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from worldflow.world import WorldModel

__all__ = ["available_bytes", "bytes_per_episode", "check_room"]

_STATES_IN_A_STEP = 3
"""Before, after, and what a layer puts together for its attention or a longer cache before its oldest frame leaves."""


def bytes_per_episode(world: WorldModel, *, is_guided: bool = False) -> int:
    """Bytes that an episode keeps from step to step, whatever its length: the window's caches and the last frame.

    Args:
        world: The world.
        is_guided: Whether the past is also kept without its actions.
    """
    state = world.begin(1)
    blocks = [world.flow.deep] if world.flow.drafter is None else [world.flow.deep, world.flow.drafter]
    one = sum(tensor.nbytes for tensor in state.tensors().values())
    if world.config.text is None:  # what rolled out of a cache last keeps its place there until the next step
        rolled = sum(2 * prod(block.frames.transformer.cache_shape) * block.frames.slots for block in blocks)
        one += rolled * state.latents.element_size()
    sizes = {3: 1, 1: 4}  # bytes of a gray level, and of a number
    frame = sum(prod(shape) * sizes[len(shape)] for shape in world.config.data.part_shapes.values())
    return one * (1 + is_guided) + frame


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device, in bytes; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def check_room(num_episodes: int, each: int, *, device: torch.device) -> None:
    """Refuse a batch that will not fit, before it is allocated.

    Args:
        num_episodes: Episodes side by side.
        each: Bytes of one, see `bytes_per_episode`.
        device: Where they are.

    Raises:
        MemoryError: If a step needs more than is free.
    """
    free = available_bytes(device)
    if free is not None and num_episodes * each * _STATES_IN_A_STEP > free:
        raise MemoryError(
            f"a step of {num_episodes} environments needs about {_readable(num_episodes * each * _STATES_IN_A_STEP)} "
            f"({_readable(each)} are kept for each), and {_readable(free)} are free on {device}; "
            f"make at most {free // (each * _STATES_IN_A_STEP)}"
        )


def _readable(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
