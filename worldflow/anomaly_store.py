"""What was scored of a case, in a file that knows what it is about, so that long evaluations can be interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from worldflow.atomic import replacing
from worldflow.score_types import EpisodeScores

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

__all__ = ["Judged", "kept"]

PLAIN = ("num_draws", "world", "standard_error")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores and baselines of some episodes.

    Args:
        scores: Of each episode, with labels where it has any.
        baselines: From names to a number of each transition of each episode.
        frames: Of the first episode.
    """

    scores: Sequence[EpisodeScores]
    baselines: Mapping[str, Sequence[Float[np.ndarray, " time"]]]
    frames: UInt8[np.ndarray, "time+1 row column channel"]

    @property
    def every_second(self) -> Judged:
        """Every second episode: what detectors rank by."""
        return replace(
            self, scores=self.scores[1::2], baselines={name: rows[1::2] for name, rows in self.baselines.items()}
        )

    def save(self, path: Path, *, about: str) -> None:
        """Write it, whole or not at all."""
        names = [f.name for f in fields(EpisodeScores) if f.name not in PLAIN]
        columns = {name: [getattr(s, name) for s in self.scores] for name in names}
        arrays = {
            f"scores.{name}": np.concatenate(rows)
            for name, rows in columns.items()
            if not any(row is None for row in rows)
        }
        arrays |= {f"baseline.{name}": np.concatenate(rows) for name, rows in self.baselines.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                about=np.array(about),
                lengths=np.array([len(s) for s in self.scores]),
                draws=np.array(self.scores[0].num_draws),
                world=np.array(self.scores[0].world),
                frames=self.frames,
                **arrays,
            )

    @staticmethod
    def load(path: Path, *, about: str) -> Judged | None:
        """Read it; None if there is none, or it is about something else."""
        try:
            with path.open("rb") as stored, np.load(stored) as file:
                if str(file["about"]) != about:
                    return None
                cuts = np.cumsum(file["lengths"])[:-1]
                parts = {name: np.split(file[name], cuts) for name in file.files if "." in name}
                shared = {"num_draws": int(file["draws"]), "world": str(file["world"])}
                frames = file["frames"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            warnings.warn(f"cannot read {path} ({error}); it is made anew", stacklevel=2)
            return None
        columns = {name.removeprefix("scores."): rows for name, rows in parts.items() if name.startswith("scores.")}
        scores = [
            EpisodeScores(**{name: rows[i] for name, rows in columns.items()}, **shared) for i in range(len(cuts) + 1)
        ]
        baselines = {name.removeprefix("baseline."): rows for name, rows in parts.items() if name.startswith("base")}
        return Judged(scores=scores, baselines=baselines, frames=frames)


def kept(path: Path, *, about: str, make: Callable[[], Judged]) -> Judged:
    """What a file holds if it is about this, or made and kept there.

    Args:
        path: The file.
        about: All that its content depends on.
        make: Makes it.
    """
    found = Judged.load(path, about=about)
    if found is None:
        found = make()
        found.save(path, about=about)
    return found
