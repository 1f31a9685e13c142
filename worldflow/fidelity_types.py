"""What an evaluation returns: curves over the horizon, single numbers, what was left out and why, and pictures.

Everything has a plain form for JSON (`Fidelity.to_plain`), with numbers in full and None where one is not finite.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from worldflow.atomic import write_bytes
from worldflow.hints import did_you_mean
from worldflow.metrics import Curve

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

__all__ = ["COPY", "DETERMINISTIC", "REAL", "WORLD", "Fidelity", "Measure", "Number", "Pictures", "mean_name"]

WORLD, REAL, COPY, DETERMINISTIC = "world", "real frames", "copy last", "deterministic"
"""Names of what is measured: single imagined futures, the recorded frames, the two baselines."""


def mean_name(num_samples: int) -> str:
    """Name of the mean of so many futures."""
    return f"mean of {num_samples}"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure as a function of the horizon.

    Args:
        title: What it is, for people.
        unit: Of its values.
        best: Which values are better, or None where neither is: then the nearest to `ideal` is.
        about: How it is measured, in a sentence or two.
        horizons: Steps at which the curves have values.
        curves: From predictor to values and 95 % intervals.
        ideal: The value of a perfect world, where that is a number known beforehand.
    """

    title: str
    unit: str
    best: Literal["high", "low"] | None
    about: str
    horizons: tuple[int, ...]
    curves: Mapping[str, Curve]
    ideal: float | None = None

    def at(self, predictor: str, horizon: int) -> float:
        """Value of a predictor at a horizon; the first one at or after it that was measured.

        Raises:
            KeyError: If the predictor or the horizon was not measured.
        """
        if predictor not in self.curves:
            raise KeyError(f"no predictor {predictor!r}{did_you_mean(predictor, self.curves)}")
        places = [k for k, h in enumerate(self.horizons) if h >= horizon]
        if not places:
            raise KeyError(f"{self.title} was measured up to {self.horizons[-1]} steps, not at {horizon}")
        return float(self.curves[predictor].mean[places[0]])


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number with its 95 % interval, where it has one."""

    title: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A few clips to look at, all `uint8 (clip, time, row, column, channel)`; `mean` is rounded, for the eye only.

    Args:
        last: The last given frame, one a clip.
        real, mean: What happened; the mean of the futures.
        samples: Two of the futures, `(sample, clip, time, ...)`.
        deterministic: The deterministic predictor's, or None.
        long: Long rollouts, every `long_every`-th frame, or None.
        long_every: Steps between those frames.
    """

    last: UInt8[np.ndarray, "clip row column channel"]
    real: UInt8[np.ndarray, "clip time row column channel"]
    mean: UInt8[np.ndarray, "clip time row column channel"]
    samples: UInt8[np.ndarray, "sample clip time row column channel"]
    deterministic: UInt8[np.ndarray, "clip time row column channel"] | None = None
    long: UInt8[np.ndarray, "clip time row column channel"] | None = None
    long_every: int = 1


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How faithful a world is, on held-out episodes.

    Args:
        measures: Functions of the horizon, by short name: `psnr`, `ssim`, `physics`, ...
        numbers: Single numbers, by short name.
        tables: Numbers by coordinate of the state or by rank: name of the table, of the row, values.
        left_out: What could not be measured, and why.
        protocol: How it was measured: settings, seeds, hashes, versions.
        pictures: A few clips.

    Example:
        >>> fidelity = wf.evaluate("runs/reacher", "data/reacher")        # doctest: +SKIP
        >>> fidelity.measures["psnr"].at("world", 16)                     # doctest: +SKIP
    """

    measures: Mapping[str, Measure]
    numbers: Mapping[str, Number]
    tables: Mapping[str, Mapping[str, Float64[np.ndarray, " entry"]]]
    left_out: Mapping[str, str]
    protocol: Mapping[str, Any]
    pictures: Pictures

    def shown_horizons(self) -> tuple[int, ...]:
        """Horizons of the short tables: powers of two, and the last one."""
        last = int(self.protocol["horizon"])
        return tuple(sorted({h for h in (1, 2, 4, 8, 16, 32, 64) if h <= last} | {last}))

    def to_plain(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON can hold it."""
        measures = {
            name: {
                "title": m.title,
                "unit": m.unit,
                "best": m.best,
                "ideal": m.ideal,
                "about": m.about,
                "horizons": list(m.horizons),
                "curves": {
                    predictor: {part: _plain(getattr(curve, part)) for part in ("mean", "low", "high")}
                    for predictor, curve in m.curves.items()
                },
            }
            for name, m in self.measures.items()
        }
        numbers = {name: {key: _plain(value) for key, value in vars(n).items()} for name, n in self.numbers.items()}
        tables = {name: {row: _plain(values) for row, values in table.items()} for name, table in self.tables.items()}
        return {
            "format": 1,
            "protocol": dict(self.protocol),
            "left_out": dict(self.left_out),
            "numbers": numbers,
            "measures": measures,
            "tables": tables,
        }

    def write_json(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_plain` to a file, whole or not at all."""
        return write_bytes(path, (json.dumps(self.to_plain(), allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
