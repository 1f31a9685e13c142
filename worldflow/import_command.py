"""`worldflow import`: recordings of other people's as a data set to learn from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

__all__ = ["ImportCommand", "on_existing"]


def on_existing(*, append: bool, overwrite: bool) -> Literal["error", "append", "overwrite"]:
    """What two options say to do where a data set already is.

    Raises:
        ValueError: If both are given.
    """
    if append and overwrite:
        raise ValueError("give --append or --overwrite, not both")
    return "append" if append else "overwrite" if overwrite else "error"


@dataclass(frozen=True, kw_only=True)
class ImportCommand:
    """Bring recordings (LeRobot, HDF5, videos with actions) into a data set."""

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """A LeRobot data set; an HDF5 file or a folder of them; or a folder of videos, each with NAME.csv, NAME.npy or
    NAME.npz beside it, one row an action."""
    out: str
    """Folder of the data set."""
    observation: Literal["pixels", "vector", "dict"] = "pixels"
    """What is seen: pixels, a vector of numbers, or both as a dict."""
    frames: str | None = None
    """The camera, or the vector where only that is seen, where the recording has several."""
    vector: str | None = None
    """The vector beside the pictures, where the recording has several."""
    actions: str | None = None
    """What the actions are called, where not as usual; of a csv, what their columns begin with."""
    size: int | None = None
    """Rows and columns that pictures are brought to, the middle square of each; by default they stay as they are."""
    low: tuple[float, ...] = ()
    """Least values of an action, one or one for each number; by default the least recorded."""
    high: tuple[float, ...] = ()
    """Greatest values of an action, likewise; by default the greatest recorded."""
    episodes: int | None = None
    """Import the first so many only."""
    append: bool = False
    """Continue the data set that is there."""
    overwrite: bool = False
    """Replace the data set that is there, once the first episode is read."""
    json: bool = False
    """Print the result as JSON."""

    def __call__(self) -> dict[str, Any]:
        """Import."""
        from worldflow.envs.importing import import_recordings

        existing = on_existing(append=self.append, overwrite=self.overwrite)
        found = import_recordings(
            self.source,
            out=self.out,
            observation=self.observation,
            frames=self.frames,
            vector=self.vector,
            actions=self.actions,
            size=self.size,
            low=self.low or None,
            high=self.high or None,
            episodes=self.episodes,
            on_existing=existing,
        )
        return {**asdict(found), "path": str(found.path)}
