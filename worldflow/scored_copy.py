"""A copy of a data set that has scores in its infos, for whoever reads it by Minari: to filter, weigh or look.

    infos/score/<name>    a number a frame: that of the transition which led to it; NaN for the first one

Names are those of `worldflow.score.write_csv`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from worldflow.data import Dataset
from worldflow.score_types import EpisodeScores, columns

if TYPE_CHECKING:
    from worldflow.detector import Alarms

__all__ = ["INFO", "write_scored_copy"]

INFO = "score"
"""Group of infos that scores stand in; one that is there already is replaced in the copy."""


def write_scored_copy(
    scores: Sequence[EpisodeScores],
    dataset: Dataset,
    out: str | os.PathLike[str],
    *,
    alarms: Sequence[Alarms] | None = None,
) -> Path:
    """Copy a data set and add scores; the copy appears whole or not at all.

    Args:
        scores: Of each of its episodes.
        dataset: The data set.
        out: Folder of the copy.
        alarms: What a detector made of them: whether each transition rings, and p-values.

    Returns:
        `out` as a `Path`.

    Raises:
        FileExistsError: If there is something at `out`.
        ValueError: If the scores are not of these episodes.
        OSError: If it could not be written.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} is there already; give another folder for the copy with scores")
    lengths = [len(episode) for episode in scores]
    if lengths != dataset.lengths.tolist():
        raise ValueError(
            f"scores must be of {len(dataset)} episodes as long as the data set's, got {len(lengths)}; score it again"
        )
    dataset.close()
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        folder = Path(shutil.copytree(dataset.file.parent, temporary / "data"))
        with h5py.File(folder / dataset.file.name, "r+") as file:
            for number, episode in enumerate(scores):
                infos = file[f"episode_{number}"].require_group("infos")  # pyright: ignore[reportAttributeAccessIssue]
                if INFO in infos:
                    del infos[INFO]
                found = columns(episode) | ({} if alarms is None else alarms[number].columns)
                for name, values in found.items():
                    if values.dtype.kind in "if":
                        infos[f"{INFO}/{name}"] = np.concatenate(([np.nan], values))
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out
