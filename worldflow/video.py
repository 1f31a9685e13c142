"""Moving pictures: write and read them, put clips side by side, lay them out as a film strip.

A clip is `uint8 (time, row, column, channel)` with 1 or 3 channels. Frames of a world model are small, so everything
that shows them enlarges them by a whole factor, pixel by pixel, and never smooths.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from worldflow.atomic import write_bytes
from worldflow.hints import did_you_mean
from worldflow.palette import indexed_frames

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream
    from jaxtyping import UInt8
    from numpy.typing import ArrayLike

__all__ = [
    "beside",
    "difference",
    "encode_video",
    "film_strip",
    "frames_from",
    "read_video",
    "save_png",
    "to_data_uri",
    "upscale",
    "write_video",
]

_MIME_TYPES = {
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
_SAFE = " !$'()*+,-./:;<=>?@[]^_`{|}~"  # of an SVG in an attribute of a page
_PAPER, _INK, _FAINT_INK = (255, 255, 255), (31, 41, 55), (107, 114, 128)
_FONT_SIZE, _FONT_SIZE_MIN = 13, 10


def write_video(
    frames: ArrayLike | torch.Tensor,
    path: str | os.PathLike[str],
    *,
    fps: float = 15.0,
    num_colors: int = 255,
    tolerance: int = 0,
) -> Path:
    """Write a clip as GIF or MP4, chosen by the suffix, whole or not at all.

    Args:
        frames: `uint8 (time, row, column, channel)`, 1 or 3 channels.
        path: Ends in `.gif` or `.mp4`; missing parent folders are made.
        fps: Frames a second, as in `encode_video`.
        num_colors: Of a GIF, as in `encode_video`.
        tolerance: Of a GIF, as in `encode_video`.

    Returns:
        `path` as a `Path`.

    Raises:
        TypeError, ValueError: As in `encode_video`.
    """
    return write_bytes(
        path, encode_video(frames, suffix=Path(path).suffix, fps=fps, num_colors=num_colors, tolerance=tolerance)
    )


def encode_video(
    frames: ArrayLike | torch.Tensor,
    *,
    suffix: str = ".gif",
    fps: float = 15.0,
    num_colors: int = 255,
    tolerance: int = 0,
) -> bytes:
    """Encode a clip as the bytes of a file that repeats (GIF) or plays (MP4) at `fps`.

    A GIF keeps its frames exactly if they have at most `num_colors`, and is close otherwise. MP4 is H.264 where the
    library has it, else MPEG-4; it is lossy, and frames of odd size gain a row or column that repeats the last.

    Args:
        frames: `uint8 (time, row, column, channel)`, 1 or 3 channels.
        suffix: `.gif` or `.mp4`.
        fps: Frames a second; a GIF counts hundredths of a second a frame and rounds to the nearest.
        num_colors: Most colors of a GIF, 2 to 255; noisy clips become smaller with fewer.
        tolerance: A GIF's pixel keeps its color as long as that is wrong by no more gray levels than this. Faint noise
            then stands still, and the file of a noisy clip shrinks several times; 0 shows every change.

    Returns:
        The file's content.

    Raises:
        TypeError: If frames are not `uint8`.
        ValueError: If the shape does not fit, no frame is there, the suffix is unknown, or `fps` is out of range.
    """
    rgb = _rgb(frames)
    if not 0.0 < fps < float("inf"):
        raise ValueError(f"fps must be positive and finite, got {fps}")
    if suffix.lower() == ".gif":
        return _encode_gif(rgb, fps=fps, num_colors=num_colors, tolerance=tolerance)
    if suffix.lower() == ".mp4":
        return _encode_mp4(rgb, fps=fps)
    hint = did_you_mean(suffix, (".gif", ".mp4"), otherwise="")
    raise ValueError(f"a video's suffix must be .gif or .mp4, got {suffix!r}{hint}")


def read_video(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "time row column 3"]:
    """Read every frame of a GIF, MP4 or anything else the video library knows.

    Args:
        path: The file.

    Returns:
        Frames `uint8 (time, row, column, 3)`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a video, is damaged, or holds no frame.
    """
    import av  # a machine that only trains may be without it
    import av.error

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no video at {path}")
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, IndexError) as error:  # IndexError: a file without a video stream
        raise ValueError(f"{path} is not a readable video ({error}); write it again") from error
    if not frames:
        raise ValueError(f"{path} holds no frame; write it again")
    return np.stack(frames)


def frames_from(
    path: str | os.PathLike[str], *, second: float, count: int, fps: float
) -> Iterator[UInt8[np.ndarray, "row column 3"]]:
    """Read some frames of a video, one after the other, from a moment on.

    Args:
        path: The file.
        second: When the first of them is shown; the nearest frame is taken.
        count: How many.
        fps: Frames a second.

    Yields:
        `uint8 (row, column, 3)`.

    Raises:
        ValueError: If there is no such video, it is damaged, or ends too early.
    """
    import av
    import av.error

    if not Path(path).is_file():
        raise ValueError(f"no video at {path}; fetch the recording again")
    found = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = float(stream.time_base or Fraction(1))
            if second > 0:  # to the key frame before it: what lies between is decoded, too
                container.seek(int(second / base), stream=stream, backward=True)
            for frame in container.decode(stream):
                if found == count:
                    break
                if float(frame.pts or 0) * base > second - 0.5 / fps:
                    found += 1
                    yield frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a readable video ({error}); fetch the recording again") from error
    if found < count:
        raise ValueError(f"{path} has {found} frames from second {second:g} on, {count} are needed")


def upscale(frames: ArrayLike | torch.Tensor, factor: int) -> UInt8[np.ndarray, "... row column channel"]:
    """Enlarge frames by a whole factor, each pixel a square of `factor` by `factor`.

    Args:
        frames: `(..., row, column, channel)`.
        factor: At least 1.

    Returns:
        Frames `(..., row * factor, column * factor, channel)` of the same type.
    """
    array = _array(frames)
    if array.ndim < 3:
        raise ValueError(f"frames must have shape (..., row, column, channel), got {array.shape}")
    if factor != int(factor) or factor < 1:
        raise ValueError(f"factor must be a whole number of at least 1, got {factor}")
    return array.repeat(int(factor), axis=-3).repeat(int(factor), axis=-2)


def difference(
    a: ArrayLike | torch.Tensor, b: ArrayLike | torch.Tensor, *, gain: float = 2.0
) -> UInt8[np.ndarray, "time row column 1"]:
    """Show where two clips differ: white where they agree, darker by `gain` times the largest channel's difference.

    Args:
        a: One clip.
        b: The other, of the same shape.
        gain: Gray levels shown per gray level of difference; what exceeds 255 is black.

    Returns:
        A clip of the same size with one channel.
    """
    x, y = _clip(a), _clip(b)
    if x.shape != y.shape:
        raise ValueError(f"clips must have one shape, got {x.shape} and {y.shape}; cut the longer one")
    shown = 255.0 - gain * np.abs(x.astype(np.float64) - y.astype(np.float64)).max(axis=-1, keepdims=True)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def beside(
    *clips: ArrayLike | torch.Tensor, labels: Sequence[str] | None = None, scale: int | None = None, gap: int = 8
) -> UInt8[np.ndarray, "time row column 3"]:
    """Put clips side by side, enlarged, with a label above each.

    Args:
        *clips: `uint8 (time, row, column, channel)`, as many frames and rows each.
        labels: One a clip; none leaves the line out. A label wider than its clip is cut short.
        scale: Whole factor of enlargement; by default the smallest that makes frames at least 192 pixels high.
        gap: Pixels of white between clips.

    Returns:
        One clip.

    Raises:
        ValueError: If clips differ in length or height, or labels in number.
    """
    shown = _matching(clips, labels)
    time, rows = shown[0].shape[:2]
    shown = [upscale(clip, _scale(scale, rows=rows, target=192)) for clip in shown]
    parts = []
    for k, clip in enumerate(shown):
        if k > 0:
            parts.append(np.full((*clip.shape[:2], gap, 3), _PAPER, np.uint8))
        parts.append(clip)
    picture = np.concatenate(parts, axis=2)
    if labels is None:
        return picture
    header = Image.new("RGB", (picture.shape[2], _FONT_SIZE + 8), _PAPER)
    draw, left = ImageDraw.Draw(header), 0
    size = min(_font_size(label, width=clip.shape[2]) for label, clip in zip(labels, shown, strict=True))
    font = ImageFont.load_default(size)
    for label, clip in zip(labels, shown, strict=True):
        text = _cut(label, font=font, width=clip.shape[2])
        draw.text((left + clip.shape[2] / 2, header.height / 2), text, fill=_INK, font=font, anchor="mm")
        left += clip.shape[2] + gap
    return np.concatenate([np.broadcast_to(np.asarray(header), (time, *header.size[::-1], 3)), picture], axis=1)


def film_strip(
    *clips: ArrayLike | torch.Tensor,
    labels: Sequence[str] | None = None,
    every: int = 1,
    first: int = 0,
    scale: int | None = None,
    gap: int = 2,
) -> UInt8[np.ndarray, "row column 3"]:
    """Lay clips out as one picture: a row a clip, a column a time.

    Args:
        *clips: `uint8 (time, row, column, channel)`, of one length and height.
        labels: One a clip, written left of its row; with labels, columns carry the time above.
        every: Show frames 0, `every`, `2 every`, ...
        first: Time of the clips' first frame, for the numbers above the columns.
        scale: Whole factor of enlargement; by default the smallest that makes frames at least 64 pixels high.
        gap: Pixels of white between frames.

    Returns:
        The picture.

    Raises:
        ValueError: If clips differ in length or height, or labels in number.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    shown = _matching(clips, labels)
    factor = _scale(scale, rows=shown[0].shape[1], target=64)
    shown = [upscale(clip[::every], factor) for clip in shown]
    num_columns, height, width = len(shown[0]), shown[0].shape[1], max(clip.shape[2] for clip in shown)
    font = ImageFont.load_default(_FONT_SIZE)
    left = 0 if labels is None else int(np.ceil(max(font.getlength(label) for label in labels))) + 10
    top = 0 if labels is None else _FONT_SIZE + 6
    size = (left + num_columns * (width + gap) - gap, top + len(shown) * (height + gap) - gap)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, clip in enumerate(shown):
        y = top + row * (height + gap)
        if labels is not None:
            draw.text((left - 8, y + height / 2), labels[row], fill=_INK, font=font, anchor="rm")
        for column, frame in enumerate(clip):
            sheet.paste(Image.fromarray(frame), (left + column * (width + gap), y))
    if labels is not None:
        small = ImageFont.load_default(_FONT_SIZE - 2)
        for column in range(num_columns):
            text = _cut(str(first + column * every), font=small, width=width)
            position = (left + column * (width + gap) + width / 2, top / 2)
            draw.text(position, text, fill=_FAINT_INK, font=small, anchor="mm")
    return np.asarray(sheet)


def save_png(picture: UInt8[np.ndarray, "row column 3"], path: str | os.PathLike[str]) -> Path:
    """Write a picture as PNG, whole or not at all."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG")
    return write_bytes(path, data.getvalue())


def to_data_uri(source: bytes | str | os.PathLike[str], *, mime: str | None = None) -> str:
    """Embed a file in a page: `data:` followed by type and base64, or by the text of an SVG file.

    Args:
        source: The bytes, or the path of a file.
        mime: Media type; by default from the path's suffix or the bytes' own signature.

    Returns:
        The URI.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the type is neither given nor known.
    """
    if isinstance(source, bytes):
        data, mime = source, mime or _sniff(source)
        if mime is None:
            raise ValueError(f"cannot tell the type of {len(data)} bytes that begin {data[:8]!r}; pass mime=")
    else:
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no file at {path} to embed")
        data, mime = path.read_bytes(), mime or _MIME_TYPES.get(path.suffix.lower())
        if mime is None:
            raise ValueError(f"cannot tell the type of {path} from its suffix; pass mime=")
    if mime == "image/svg+xml":  # as text it takes three quarters of the bytes
        return f"data:{mime},{quote(_dense(data), safe=_SAFE)}"
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _dense(svg: bytes) -> bytes:
    """The same drawing without line breaks, and with quotes that need no escape in a page."""
    lines = re.sub(rb"\s*\n\s*", b" ", svg.strip())
    return lines if b"'" in lines else lines.replace(b'"', b"'")


def _array(frames: ArrayLike | torch.Tensor) -> np.ndarray:
    return frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)


def _clip(frames: ArrayLike | torch.Tensor) -> np.ndarray:
    array = _array(frames)
    if array.dtype != np.uint8:
        raise TypeError(f"frames must be uint8, got {array.dtype}; scale to 0..255 and round first")
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(f"frames must have shape (time, row, column, channel), channel 1 or 3, got {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"frames must not be empty, got shape {array.shape}")
    return array


def _rgb(frames: ArrayLike | torch.Tensor) -> np.ndarray:
    array = _clip(frames)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:3], 3)))


def _matching(clips: Sequence[ArrayLike | torch.Tensor], labels: Sequence[str] | None) -> list[np.ndarray]:
    """Clips as colors, checked to have as many frames and rows each and a label each."""
    if not clips:
        raise ValueError("expected at least one clip, got none")
    shown = [_rgb(clip) for clip in clips]
    for name, axis in (("frames", 0), ("rows", 1)):
        counts = [clip.shape[axis] for clip in shown]
        if len(set(counts)) > 1:
            raise ValueError(f"clips must have as many {name} each, got {counts}; cut or enlarge them first")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"labels must name each of the {len(clips)} clips, got {len(labels)}: {list(labels)}")
    return shown


def _scale(scale: int | None, *, rows: int, target: int) -> int:
    return -(-target // rows) if scale is None else scale


def _font_size(label: str, *, width: int) -> int:
    """The largest size at which the label fits into `width` pixels, or the smallest that can be read."""
    sizes = range(_FONT_SIZE, _FONT_SIZE_MIN, -1)
    return next((size for size in sizes if ImageFont.load_default(size).getlength(label) <= width), _FONT_SIZE_MIN)


def _cut(label: str, *, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The label, or as much of it as fits into `width` pixels before an ellipsis."""
    if font.getlength(label) <= width:
        return label
    fits = (end for end in range(len(label) - 1, 0, -1) if font.getlength(label[:end] + "…") <= width)
    end = next(fits, 0)
    return label[:end] + "…" if end else ""


def _sniff(data: bytes) -> str | None:
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return "video/mp4"
    if data.lstrip().startswith((b"<svg", b"<?xml")):
        return "image/svg+xml"
    return None


def _encode_gif(rgb: np.ndarray, *, fps: float, num_colors: int, tolerance: int) -> bytes:
    if not 2 <= num_colors <= 255:
        raise ValueError(f"num_colors must lie between 2 and 255 (a GIF's last one is transparent), got {num_colors}")
    hundredths = round(100 / fps)
    if not 2 <= hundredths <= 65_535:
        raise ValueError(f"a GIF shows 0.0016 to 50 frames a second (browsers slow faster ones down), got {fps}")
    return _encode(
        indexed_frames(rgb, num_colors=num_colors, tolerance=tolerance),
        size=rgb.shape[1:3],
        container="gif",
        codec="gif",
        pixel_format="pal8",
        rate=Fraction(100, hundredths),
        container_options={"loop": "0"},
    )


def _encode_mp4(rgb: np.ndarray, *, fps: float) -> bytes:
    import av

    rows, columns = rgb.shape[1:3]
    rgb = np.pad(rgb, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), mode="edge")  # chroma is stored by 2 x 2
    is_h264 = "libx264" in av.codecs_available
    return _encode(
        (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in rgb),
        size=rgb.shape[1:3],
        container="mp4",
        codec="libx264" if is_h264 else "mpeg4",
        pixel_format="yuv420p",  # the one every browser plays
        rate=Fraction(fps).limit_denominator(1000),
        codec_options={"crf": "18", "preset": "medium"} if is_h264 else {"qmin": "2", "qmax": "4"},
    )


def _encode(
    frames: Iterable[av.VideoFrame],
    *,
    size: tuple[int, ...],
    container: str,
    codec: str,
    pixel_format: str,
    rate: Fraction,
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=container_options or {}) as output:
        stream: VideoStream = output.add_stream(codec, rate=rate, options=codec_options or {})  # pyright: ignore[reportAssignmentType]
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        if pixel_format == "yuv420p":  # say which matrix the conversion used, or players guess by the picture's size
            stream.codec_context.colorspace = 6  # ITU-R BT.601
            stream.codec_context.color_range = 1  # 16 to 235
        for time, frame in enumerate(frames):
            frame.pts, frame.time_base = time, 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()
