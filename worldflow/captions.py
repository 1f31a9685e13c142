"""What episodes show, in words: where captions are kept, and how to add them to a data set that is there.

An episode's caption is the text under `"caption"` in the metadata that Minari keeps for each episode, an attribute of
its group in `main_data.hdf5`. `worldflow collect` writes it where an environment gives `info["caption"]`;
`Dataset.caption` and `Episode.caption` read it, and so does Minari:

    [episode["caption"] for episode in minari.load_dataset(ID).storage.get_episode_metadata(range(10))]

Anybody's data set gets captions by `add_captions`. Minari's own `storage.update_episode_metadata([{"caption": ...}])`
does the same, in place, and what stops it half-way may take the data with it. A data set that Minari recorded from an
environment with `info["caption"]` has them already, once for every step, and they are read from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import h5py

from worldflow.atomic import deferring, replacing
from worldflow.data import Dataset
from worldflow.episodes import CAPTION

__all__ = ["add_captions"]


def add_captions(dataset: str | os.PathLike[str] | Dataset, captions: Sequence[str | None]) -> None:
    """Write captions to a data set, all of them or none.

    The file is copied, the copy gets the captions, and replaces it: there must be room for another one. Readers that
    have it open go on reading the old one; a `Dataset` that is given here sees the new.

    Args:
        dataset: The folder of a data set, or a `Dataset`.
        captions: One for each episode, in their order; None leaves an episode as it is. One that an episode has already
            is replaced.

    Raises:
        ValueError: Not one for each episode, an empty one, or a data set that is still being recorded.
        TypeError: One is no text.
        OSError: No room, or no permission.

    Example:
        >>> add_captions("data/kitchen", ["a hand opens a door", None, "a hand lifts a cup"])  # doctest: +SKIP
    """
    found = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    given = _checked(captions, len(found))
    with h5py.File(found.file, "r", locking="best-effort") as file:
        if any(isinstance(file.get(name, getlink=True), h5py.ExternalLink) for name in file):
            raise ValueError(
                f"{found.path} is still being recorded, or its recording was stopped; "
                "let it finish, or continue it with `worldflow collect --append`, and add captions then"
            )
    found.close()
    with replacing(found.file) as copy:
        shutil.copyfile(found.file, copy)
        with (
            copy.open("r+b", buffering=0) as stream,
            deferring(stream) as disk,
            h5py.File(disk, "r+") as file,
        ):
            for number, caption in enumerate(given):
                if caption is not None:
                    file[f"episode_{number}"].attrs[CAPTION] = caption


def _checked(captions: Sequence[str | None], num_episodes: int) -> list[str | None]:
    if isinstance(captions, str):
        raise TypeError(f"captions must be a sequence of texts, one for each episode, got the text {captions!r}")
    if len(captions) != num_episodes:
        raise ValueError(
            f"expected one caption for each of {num_episodes} episodes, got {len(captions)}; "
            "None leaves an episode as it is"
        )
    for number, caption in enumerate(captions):
        if caption is not None and not isinstance(caption, str):
            raise TypeError(f"caption {number} must be text or None, got {type(caption).__name__}")
        if caption is not None and not caption.strip():
            raise ValueError(f"caption {number} is empty; None leaves an episode as it is")
    return list(captions)
