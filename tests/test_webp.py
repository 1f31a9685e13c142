from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from worldflow.video import encode_video
from worldflow.webp import smaller_without_loss


def file(pixels: np.ndarray, kind: str) -> bytes:
    found = io.BytesIO()
    Image.fromarray(pixels).save(found, format=kind)
    return found.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
def test_a_picture_keeps_every_pixel(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 3, (40, 60, channels), dtype=np.uint8) * 80
    found = smaller_without_loss(file(pixels, "PNG"))
    image = Image.open(io.BytesIO(found))
    assert image.format == "WEBP" and len(found) < len(file(pixels, "PNG"))
    np.testing.assert_array_equal(np.asarray(image), pixels)  # behind what is transparent, too
    noise = file(np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8), "PNG")
    assert smaller_without_loss(noise) is noise  # nothing makes noise smaller


def shown(data: bytes) -> list[tuple[np.ndarray, int]]:
    """Frames, and for how many milliseconds each."""
    with Image.open(io.BytesIO(data)) as image:
        found = []
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            image.load()
            found.append((np.asarray(image.convert("RGB")), image.info["duration"]))
        return found


def test_a_moving_picture_keeps_frames_and_pace() -> None:
    random = np.random.default_rng(1)
    clip = np.repeat(random.integers(0, 4, (6, 48, 48, 1), dtype=np.uint8) * 60, 3, axis=-1)
    gif = encode_video(clip, suffix=".gif", fps=8)
    found = smaller_without_loss(gif)
    assert Image.open(io.BytesIO(found)).format == "WEBP" and len(found) < len(gif)
    for (frame, pace), (kept, kept_pace), drawn in zip(shown(gif), shown(found), clip, strict=True):
        np.testing.assert_array_equal(kept, drawn)
        np.testing.assert_array_equal(frame, drawn)
        assert kept_pace == pace


def test_what_is_no_picture_of_that_kind_stays_and_damage_is_told() -> None:
    jpeg = file(np.zeros((4, 4, 3), np.uint8), "JPEG")
    assert smaller_without_loss(jpeg) is jpeg and smaller_without_loss(b"<svg/>") == b"<svg/>"
    png = file(np.zeros((40, 40, 3), np.uint8), "PNG")
    with pytest.raises(OSError, match=r"."):
        smaller_without_loss(png[:50])
