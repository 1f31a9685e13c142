from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from worldflow import palette, video


def few_colors(time: int = 7, rows: int = 13, columns: int = 17) -> np.ndarray:
    """A square that wanders over a checkered ground: 40 colors, and two frames that are the same."""
    generator = np.random.default_rng(0)
    colors = generator.integers(0, 256, (40, 3), dtype=np.uint8)
    frames = np.broadcast_to(colors[np.add.outer(np.arange(rows), np.arange(columns)) % 39], (time, rows, columns, 3))
    frames = frames.copy()
    for t in range(time):
        frames[t, t : t + 3, 2 * t : 2 * t + 3] = colors[39]
    frames[4:5] = frames[3:4]
    return frames


def smooth(time: int = 6, rows: int = 32, columns: int = 48) -> np.ndarray:
    """Moving gradients with far more than 255 colors."""
    t, y, x = np.meshgrid(np.arange(time) / time, np.arange(rows) / rows, np.arange(columns) / columns, indexing="ij")
    channels = [np.sin(3 * x + 2 * t), np.cos(4 * y - t), np.sin(2 * x + 3 * y + t)]
    return np.rint(127.5 + 127.5 * np.stack(channels, axis=-1)).astype(np.uint8)


# -- files -------------------------------------------------------------------------------------------------------------


def test_gif_keeps_few_colors_every_frame_and_the_time(tmp_path: Path) -> None:
    frames = few_colors()
    path = video.write_video(frames, tmp_path / "clip.gif", fps=20)
    np.testing.assert_array_equal(video.read_video(path), frames)
    with Image.open(path) as image:  # another reader agrees, on the time and the repetition too
        assert image.n_frames == len(frames)  # pyright: ignore[reportAttributeAccessIssue]
        assert image.info["duration"] == 50 and image.info["loop"] == 0
        image.seek(len(frames) - 1)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frames[-1])


def test_gif_of_one_frame(tmp_path: Path) -> None:
    frames = few_colors(time=1)
    np.testing.assert_array_equal(video.read_video(video.write_video(frames, tmp_path / "one.gif")), frames)


def test_gif_of_as_many_colors_as_fit_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(palette, "_NUM_PALETTE_PIXELS", 50)  # what would be looked at is not all there is
    grays = np.arange(255, dtype=np.uint8)  # one gray level apart: a palette that is merely close shows
    frames = np.stack([grays.reshape(15, 17, 1), grays[::-1].reshape(15, 17, 1)])
    back = video.read_video(video.write_video(frames, tmp_path / "grays.gif"))
    np.testing.assert_array_equal(back, np.repeat(frames, 3, axis=-1))


def test_gif_of_many_colors_is_close(tmp_path: Path) -> None:
    frames = smooth()
    assert len(np.unique(frames.reshape(-1, 3), axis=0)) > 1000
    back = video.read_video(video.write_video(frames, tmp_path / "clip.gif"))
    error = np.abs(back.astype(int) - frames)
    # Measured 5.1 on average; a fixed 6 x 6 x 6 cube of colors is off by 10.9, and 64 chosen colors by 9.1.
    assert error.mean() < 7
    fewer = video.encode_video(frames, num_colors=16)
    assert len(fewer) < len(video.encode_video(frames)) / 1.5


def test_gif_tolerance_bounds_the_error_and_shrinks_a_noisy_clip(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    still = generator.integers(0, 6, (1, 16, 16, 1)) * 50
    frames = (still + generator.integers(0, 5, (20, 16, 16, 1))).astype(np.uint8)  # 30 grays: exact but for tolerance
    exact, calm = video.encode_video(frames), video.encode_video(frames, tolerance=3)
    assert len(calm) < len(exact) / 2
    (tmp_path / "calm.gif").write_bytes(calm)
    error = np.abs(video.read_video(tmp_path / "calm.gif").astype(int) - frames)
    assert 0 < error.max() <= 3


def test_mp4_is_close_and_pads_odd_sizes(tmp_path: Path) -> None:
    frames = smooth(rows=33, columns=47)
    back = video.read_video(video.write_video(torch.from_numpy(frames), tmp_path / "clip.mp4", fps=29.97))
    assert back.shape == (6, 34, 48, 3)
    error = np.abs(back[:, :33, :47].astype(int) - frames)
    # Measured 3.3, from quantization and halved chroma; a wrong color matrix costs 8.1, frames one late 17.5.
    assert error.mean() < 5
    np.testing.assert_allclose(back[:, 33, :47], back[:, 32, :47], atol=12)


def test_one_channel_is_gray(tmp_path: Path) -> None:
    gray = few_colors()[..., :1]
    back = video.read_video(video.write_video(gray, tmp_path / "gray.gif"))
    np.testing.assert_array_equal(back, np.repeat(gray, 3, axis=-1))


def test_encoding_is_repeatable() -> None:
    for suffix in (".gif", ".mp4"):
        assert video.encode_video(smooth(), suffix=suffix) == video.encode_video(smooth(), suffix=suffix)


def test_bad_clips_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    frames = few_colors()
    with pytest.raises(ValueError, match=r"suffix must be \.gif or \.mp4, got '\.mp3'; did you mean '\.mp4'"):
        video.write_video(frames, tmp_path / "clip.mp3")
    with pytest.raises(TypeError, match="frames must be uint8, got float64"):
        video.write_video(frames / 255, tmp_path / "clip.gif")
    with pytest.raises(ValueError, match=r"channel 1 or 3, got \(7, 13, 17\)"):
        video.write_video(frames[..., 0], tmp_path / "clip.gif")
    with pytest.raises(ValueError, match=r"not be empty, got shape \(0, 13, 17, 3\)"):
        video.write_video(frames[:0], tmp_path / "clip.mp4")
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps must be positive"):
            video.write_video(frames, tmp_path / "clip.mp4", fps=fps)
    with pytest.raises(ValueError, match="50 frames a second"):
        video.write_video(frames, tmp_path / "clip.gif", fps=100)
    with pytest.raises(ValueError, match="num_colors must lie between 2 and 255"):
        video.write_video(frames, tmp_path / "clip.gif", num_colors=256)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no video at .*missing\.gif"):
        video.read_video(tmp_path / "missing.gif")
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "half.mp4").write_bytes(video.encode_video(smooth(), suffix=".mp4")[:400])
    for name in ("text.mp4", "half.mp4"):
        with pytest.raises(ValueError, match=rf"{name} is not a readable video"):
            video.read_video(tmp_path / name)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_upscale_repeats_pixels() -> None:
    frames = np.arange(2 * 2 * 3 * 1, dtype=np.uint8).reshape(2, 2, 3, 1)
    large = video.upscale(frames, 3)
    assert large.shape == (2, 6, 9, 1)
    for y in range(6):
        for x in range(9):
            assert np.array_equal(large[:, y, x], frames[:, y // 3, x // 3])
    with pytest.raises(ValueError, match=r"whole number of at least 1, got 1\.5"):
        video.upscale(frames, 1.5)  # pyright: ignore[reportArgumentType]


def test_beside_keeps_pixels_in_place() -> None:
    a, b = few_colors(), few_colors()[:, :, ::-1, :1]
    plain = video.beside(a, b, scale=2, gap=5)
    assert plain.shape == (7, 26, 34 + 5 + 34, 3)
    np.testing.assert_array_equal(plain[:, :, :34], video.upscale(a, 2))
    assert np.all(plain[:, :, 34:39] == 255)
    np.testing.assert_array_equal(plain[:, :, 39:], np.repeat(video.upscale(b, 2), 3, axis=-1))
    labeled = video.beside(a, b, scale=2, gap=5, labels=["left", "right"])
    np.testing.assert_array_equal(labeled[:, -26:], plain)
    header = labeled[:, :-26]
    assert np.all(header == header[:1])
    for half in (header[0, :, :34], header[0, :, 39:]):
        assert np.any(half < 128) and np.all(half[0] == 255) and np.all(half[-1] == 255)  # ink, and not cut


def test_labels_stay_above_their_clip() -> None:
    a = few_colors()
    labeled = video.beside(a, a, scale=2, gap=20, labels=["a very long label that cannot fit", "b"])
    header = labeled[0, : labeled.shape[1] - 26]
    assert np.all(header[:, 34:54] == 255) and np.any(header[:, :34] < 128) and np.any(header[:, 54:] < 128)


def test_default_scale_makes_frames_large_enough_to_see() -> None:
    assert video.beside(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 192, 192, 3)
    assert video.beside(np.zeros((1, 500, 2, 3), np.uint8)).shape == (1, 500, 2, 3)


def test_film_strip_shows_the_right_frames() -> None:
    a, b = few_colors(), few_colors()[::-1]
    sheet = video.film_strip(a, b, every=3, scale=1, gap=2)
    assert sheet.shape == (13 + 2 + 13, 17 + 2 + 17 + 2 + 17, 3)
    for column, time in enumerate((0, 3, 6)):
        left = column * 19
        np.testing.assert_array_equal(sheet[:13, left : left + 17], a[time])
        np.testing.assert_array_equal(sheet[15:, left : left + 17], b[time])
    labeled = video.film_strip(a, b, every=3, scale=1, gap=2, labels=["real", "imagined"], first=1)
    np.testing.assert_array_equal(labeled[-28:, -55:], sheet)
    later = video.film_strip(a[3:], b[3:], every=3, scale=1, gap=2, labels=["real", "imagined"], first=4)
    np.testing.assert_array_equal(labeled[:-28, -36:], later[:-28, -36:])  # times 4 and 7
    assert np.any(labeled[:-28, -55:] < 200) and np.any(labeled[-28:, :-55] < 128)


def test_difference_is_white_where_clips_agree() -> None:
    a = np.full((1, 2, 2, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0, 0] = (100, 70, 110)
    b[0, 1, 1] = 255
    shown = video.difference(a, b, gain=2.0)
    np.testing.assert_array_equal(shown[0, ..., 0], [[255 - 60, 255], [255, 0]])


def test_clips_that_do_not_match_are_named() -> None:
    a = few_colors()
    with pytest.raises(ValueError, match=r"as many frames each, got \[7, 5\]"):
        video.beside(a, a[:5])
    with pytest.raises(ValueError, match=r"as many rows each, got \[13, 10\]"):
        video.film_strip(a, a[:, :10])
    with pytest.raises(ValueError, match="labels must name each of the 2 clips, got 1"):
        video.beside(a, a, labels=["one"])
    with pytest.raises(ValueError, match="at least one clip"):
        video.beside()
    with pytest.raises(ValueError, match="one shape"):
        video.difference(a, a[:5])


# -- data URIs ---------------------------------------------------------------------------------------------------------


def test_data_uris_know_their_type(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, format="PNG")
    known = {
        "image/png": png.getvalue(),
        "image/gif": video.encode_video(few_colors()),
        "video/mp4": video.encode_video(few_colors(), suffix=".mp4"),
    }
    webp = io.BytesIO()
    Image.new("RGB", (2, 2)).save(webp, format="WEBP")
    known["image/webp"] = webp.getvalue()
    for mime, data in known.items():
        head, body = video.to_data_uri(data).split(",")
        assert head == f"data:{mime};base64" and base64.b64decode(body) == data
    svg = '<svg height="3">\n  <text>50 % of "a" &amp; #b, ü</text>\n</svg>\n'
    head, body = video.to_data_uri(svg.encode()).split(",", 1)
    assert head == "data:image/svg+xml" and '"' not in body and "&" not in body and "#" not in body
    assert unquote(body) == "<svg height='3'> <text>50 % of 'a' &amp; #b, ü</text> </svg>"
    assert unquote(video.to_data_uri(b'<svg id="it\'s"/>')).endswith('<svg id="it\'s"/>')
    path = video.write_video(few_colors(), tmp_path / "clip.gif")
    assert video.to_data_uri(path) == video.to_data_uri(path.read_bytes())
    assert video.to_data_uri(b"?", mime="text/plain") == "data:text/plain;base64,Pw=="
    with pytest.raises(ValueError, match="pass mime="):
        video.to_data_uri(b"?")
    with pytest.raises(FileNotFoundError, match="no file at"):
        video.to_data_uri(tmp_path / "missing.png")
