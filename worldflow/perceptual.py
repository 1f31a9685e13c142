"""LPIPS, where torchmetrics and its weights are at hand: nothing is downloaded.

Reference:
    Zhang et al.: The unreasonable effectiveness of deep features as a perceptual metric (2018), arXiv:1801.03924.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["perceptual_distance"]

SIDE_MIN = 32
"""Pixels below which the network has no output."""


def perceptual_distance(
    frame_shape: tuple[int, int, int], *, device: torch.device
) -> Callable[[Tensor, Tensor], np.ndarray] | str:
    """LPIPS (AlexNet) between frames `uint8 (time, row, column, channel)`, one number a frame.

    Returns:
        The function, or the reason why there is none.
    """
    missing = [name for name in ("torchmetrics", "torchvision") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; install torchmetrics[image] to measure it"
    if not list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth")):
        return "the weights of AlexNet are not at hand, and nothing is downloaded; put them into torch.hub's folder"
    if min(frame_shape[:2]) < SIDE_MIN:
        return f"frames must have at least {SIDE_MIN} rows and columns for it"
    # By name: it is no dependency, not even an optional one; whoever has it gets the measure.
    lpips = import_module("torchmetrics.functional.image").learned_perceptual_image_patch_similarity

    def shaped(frames: Tensor) -> Tensor:
        pixels = frames.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return pixels.expand(-1, 3, -1, -1)

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> np.ndarray:
        pairs = zip(shaped(a).split(1), shaped(b).split(1), strict=True)
        return np.array([float(lpips(x, y, net_type="alex")) for x, y in pairs], dtype=np.float64)

    return distance
