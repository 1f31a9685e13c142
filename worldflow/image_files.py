"""Images from a file or a folder, with their classes or captions, and samples back into one.

images.npz     `images` (image, row, column) or (image, row, column, channel), whole numbers;
               `labels` (image,), whole numbers from 0, or `captions` (image,), texts; both may be left out
folder/        pictures of one size; where they lie in subfolders, each of these is a class, in alphabetical order
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldflow.atomic import write_bytes
from worldflow.video import film_strip, save_png

if TYPE_CHECKING:
    from jaxtyping import Int64

__all__ = ["ImageData", "read_images", "write_images"]

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
"""Suffixes of the files of a folder that are read; all others are passed over."""


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images, and what is known of each."""

    images: Int64[Tensor, "image row column channel"]
    labels: Int64[Tensor, " image"] | None
    captions: tuple[str, ...] | None
    classes: tuple[str, ...]
    """Names of the classes, as many as there are; of a file, their numbers."""


def read_images(path: str | os.PathLike[str]) -> ImageData:
    """Read images.

    Args:
        path: A file or a folder, see the module.

    Raises:
        FileNotFoundError: If there is none, or no picture in it.
        ValueError: If it is something else, or shapes and types do not fit.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no images at {path}; name an .npz file or a folder of pictures")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in ("images", "labels", "captions")}
    except (ValueError, OSError, AttributeError) as error:  # AttributeError: a single array, an .npy file
        raise ValueError(f"cannot read {path} ({error}); name an .npz file with an array `images`") from error
    if "images" not in arrays:
        raise ValueError(f"{path} must hold an array `images`, got {', '.join(arrays) or 'none that is known'}")
    images = arrays["images"]
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or not len(images) or images.dtype.kind not in "ui":
        raise ValueError(
            "images must be whole numbers of shape (image, row, column) or (image, row, column, channel), got "
            f"{images.dtype} of shape {images.shape}"
        )
    for name, kinds in (("labels", "ui"), ("captions", "U")):
        if name in arrays and (arrays[name].shape != (len(images),) or arrays[name].dtype.kind not in kinds):
            found = arrays[name]
            raise ValueError(f"{name} must be one for each of {len(images)} images, got {found.dtype} {found.shape}")
    labels = None
    if "labels" in arrays:
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
        if int(labels.min()) < 0:
            raise ValueError(f"labels must be 0 or more, got {int(labels.min())}")
    count = 0 if labels is None else int(labels.max()) + 1
    return ImageData(
        images=torch.from_numpy(images.astype(np.int64)),
        labels=labels,
        captions=tuple(map(str, arrays["captions"])) if "captions" in arrays else None,
        classes=tuple(map(str, range(count))),
    )


def write_images(
    images: Int64[Tensor, "image row column channel"],
    path: str | os.PathLike[str],
    *,
    levels: int,
    columns: int,
    labels: Int64[Tensor, " image"] | None = None,
) -> Path:
    """Write images as an `.npz` file that `read_images` reads, or as one picture, whole or not at all.

    Args:
        images: Whole numbers in `0 .. levels - 1`.
        path: Ends in `.npz` or `.png`.
        levels: How many values a number can take.
        columns: Images in a row of the picture.
        labels: Their classes, for the file.

    Raises:
        ValueError: If the suffix is another one, or a picture has neither 1 nor 3 channels.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        content = io.BytesIO()
        arrays: dict[str, Any] = {"images": images.numpy().astype(np.uint8)}
        if labels is not None:
            arrays["labels"] = labels.numpy()
        np.savez_compressed(content, **arrays)
        return write_bytes(path, content.getvalue())
    if suffix != ".png":
        raise ValueError(f"images are written as .npz or .png, got {suffix or str(path)!r}")
    shown = (images.double() * (255 / (levels - 1))).round().to(torch.uint8)
    blank = shown.new_full((-len(shown) % columns, *shown.shape[1:]), 255)
    return save_png(film_strip(*torch.cat((shown, blank)).unflatten(0, (-1, columns))), path)


def _read_folder(folder: Path) -> ImageData:
    from PIL import Image  # not needed on a node that trains

    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    if not found:
        raise FileNotFoundError(f"no pictures in {folder}; there must be some that end in {', '.join(PICTURES)}")
    places = [p.relative_to(folder).parts for p in found]
    if len({len(place) > 1 for place in places}) > 1:
        raise ValueError(f"{folder} holds pictures beside subfolders of pictures: put them in one, or take them out")
    pictures: list[np.ndarray] = []
    for path in found:
        try:
            with Image.open(path) as picture:
                kind = "L" if picture.mode in ("1", "L") else "RGB"
                pictures.append(np.asarray(picture.convert(kind)).reshape(picture.height, picture.width, -1))
        except OSError as error:
            raise ValueError(f"{path} is not a readable picture ({error}); take it out") from error
        if pictures[-1].shape != pictures[0].shape:
            raise ValueError(
                f"pictures must have one size and kind, got {pictures[0].shape} in {found[0].name} and "
                f"{pictures[-1].shape} in {path.name}; convert them to one"
            )
    names = tuple(sorted({place[0] for place in places if len(place) > 1}))
    labels = torch.tensor([names.index(place[0]) for place in places]) if names else None
    return ImageData(
        images=torch.from_numpy(np.stack(pictures).astype(np.int64)), labels=labels, captions=None, classes=names
    )
