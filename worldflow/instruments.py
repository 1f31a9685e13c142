"""The trained instruments of an evaluation, fitted once and kept beside the run they measure.

    RUN/probe.safetensors        reads the state from frames
    RUN/predictor.safetensors    the deterministic baseline
    RUN/instruments.json         what they were fitted with

An instrument is used again if it was fitted on the same training episodes with the same settings, and fitted anew
otherwise.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from worldflow.atomic import write_bytes
from worldflow.data import Dataset
from worldflow.fingerprint import fingerprint

if TYPE_CHECKING:
    from worldflow.predictor import FramePredictor
    from worldflow.probe import StateProbe

__all__ = ["instrument", "make_predictor", "make_probe"]


class Instrument(Protocol):
    """What can be kept in a file."""

    def save(self, path: Path) -> Path:
        """Write it."""
        ...


T = TypeVar("T", bound=Instrument)


def make_probe(
    dataset: Dataset,
    *,
    folder: Path | None,
    steps: int,
    seed: int,
    device: torch.device,
    progress: bool,
) -> StateProbe:
    """The probe of a data set's state.

    Args:
        dataset: The data set.
        folder: Where it may be kept, or None.
        steps: Of the fit.
        seed: Of the fit.
        device: Where to fit.
        progress: Show a progress bar.

    Raises:
        ValueError: If no state was recorded.
    """
    from worldflow.probe import StateProbe, fit_probe

    return instrument(
        "probe",
        lambda: fit_probe(dataset, steps=steps, seed=seed, progress=progress, device=device),
        StateProbe.load,
        folder=folder,
        settings={"data": fingerprint(dataset, "train"), "steps": steps, "seed": seed},
    ).to(device)


def make_predictor(
    dataset: Dataset,
    *,
    folder: Path | None,
    minutes: float,
    seed: int,
    device: torch.device,
    progress: bool,
) -> FramePredictor:
    """The deterministic predictor, trained on the same episodes for so many minutes."""
    from worldflow.predictor import FramePredictor, fit_predictor

    return instrument(
        "predictor",
        lambda: fit_predictor(dataset, minutes=minutes, seed=seed, progress=progress, device=device),
        FramePredictor.load,
        folder=folder,
        settings={"data": fingerprint(dataset, "train"), "minutes": round(minutes, 3), "seed": seed},
    ).to(device)


def instrument(
    name: str, make: Callable[[], T], load: Callable[[Path], T], *, folder: Path | None, settings: dict[str, Any]
) -> T:
    """An instrument from its file, or made and kept there.

    Args:
        name: Of the instrument, and of its file.
        make: Makes it.
        load: Reads it.
        folder: Where it is kept; None keeps it nowhere.
        settings: What it depends on; plain numbers and strings.
    """
    if folder is None:
        return make()
    path, record = folder / f"{name}.safetensors", _record(folder)
    if path.is_file() and record.get(name) == settings:
        try:
            return load(path)
        except ValueError as error:
            warnings.warn(f"{error}; it is fitted anew", stacklevel=2)
    make().save(path)
    write_bytes(folder / "instruments.json", json.dumps(_record(folder) | {name: settings}, indent=1).encode())
    return load(path)  # as the next evaluation will find it: both see the same to the last bit


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "instruments.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return record if isinstance(record, dict) else {}
