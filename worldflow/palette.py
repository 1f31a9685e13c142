"""The colors of a GIF.

A GIF holds 256 colors. All frames share one palette here (a palette a frame flickers and costs 768 bytes each), and
there is no dithering (noise neither compresses nor shows what the model drew). A clip of at most 255 colors is stored
exactly. The last entry is transparent: the encoder uses it for pixels that stay as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import av

__all__ = ["indexed_frames"]

_NUM_PALETTE_PIXELS = 1_000_000  # looked at to choose a palette


def indexed_frames(rgb: np.ndarray, *, num_colors: int, tolerance: int) -> Iterator[av.VideoFrame]:
    """Give frames one palette.

    Args:
        rgb: Frames `uint8 (time, row, column, 3)`.
        num_colors: Most colors, 2 to 255.
        tolerance: A pixel keeps its color as long as that is wrong by no more gray levels than this.

    Yields:
        Frames of indices into the palette, for a GIF encoder.
    """
    import av  # a machine that only trains may be without it

    palette, table = _palette(rgb, num_colors=num_colors)
    entries = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
    entries[: len(palette), 0], entries[: len(palette), 1:] = 255, palette
    shown = table[_pack(rgb[0])]
    for frame in rgb:
        error = np.abs(palette[shown].astype(np.int16) - frame).max(axis=-1)
        shown = np.where(error <= tolerance, shown, table[_pack(frame)])
        yield av.VideoFrame.from_ndarray((shown, entries), format="pal8")  # pyright: ignore[reportArgumentType]


def _palette(rgb: np.ndarray, *, num_colors: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `num_colors` colors `(color, 3)`, and a table from packed 24-bit colors to the index of the nearest."""
    packed = _pack(rgb).ravel()
    is_used = np.zeros(1 << 24, bool)
    is_used[packed] = True
    used = np.flatnonzero(is_used)
    colors = np.stack([used >> 16, used >> 8 & 255, used & 255], axis=1).astype(np.uint8)
    table = np.zeros(1 << 24, np.uint8)
    if len(used) <= num_colors:
        table[used] = np.arange(len(used), dtype=np.uint8)
        return colors, table
    pixels = rgb.reshape(-1, 3)
    pixels = pixels[:: -(-len(pixels) // _NUM_PALETTE_PIXELS)]
    sheet = Image.fromarray(np.ascontiguousarray(pixels[None]))
    chosen = sheet.quantize(num_colors, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    palette = np.array(chosen.getpalette(), np.uint8).reshape(-1, 3)[:num_colors]
    # Pillow's own assignment rounds colors to a coarse grid first; the nearest entry, exactly, is a matrix product.
    entries = palette.astype(np.float32)
    for part in np.array_split(np.arange(len(used)), -(-len(used) // 50_000)):
        distance = np.square(entries).sum(axis=1) - 2 * colors[part].astype(np.float32) @ entries.T
        table[used[part]] = distance.argmin(axis=1)
    return palette, table


def _pack(rgb: np.ndarray) -> np.ndarray:
    wide = rgb.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
