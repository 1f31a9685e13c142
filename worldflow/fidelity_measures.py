"""The measures of an evaluation that are about frames: looks, physics, permanence, calibration, sets of clips.

Each function takes what a gauge has read from every predictor's frames on the same clips (`worldflow.gauge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from worldflow import futures
from worldflow.fidelity_curves import (
    decibel_curve,
    jackknife_curve,
    mean_curve,
    ratio_curve,
    resampled_curve,
    rms_curve,
    rms_excess_curve,
)
from worldflow.fidelity_types import COPY, DETERMINISTIC, REAL, WORLD, Measure, Number, mean_name
from worldflow.frechet import frechet_distance
from worldflow.gauge import WINDOW, Reading
from worldflow.metrics import bootstrap_interval

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64

__all__ = [
    "SHUFFLED",
    "Found",
    "calibration",
    "first_steps",
    "frechet",
    "permanence",
    "physics",
    "pictures",
]

SHUFFLED = "other clip's actions"
LEVELS = {0.5: 3, 0.9: 14}
"""Central intervals, and how many futures it takes until the truth can be seen to lie outside."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Some measures, numbers and tables."""

    measures: Mapping[str, Measure]
    numbers: Mapping[str, Number]
    tables: Mapping[str, Mapping[str, np.ndarray]]


def pictures(readings: Mapping[str, Reading]) -> Found:
    """PSNR of single futures and of their mean, SSIM, LPIPS, and how much futures differ against how wrong they are.

    Args:
        readings: Of the world, the baselines, and of futures under other clips' actions where there are some.
    """
    world = readings[WORLD]
    num, horizons = len(world.summary), _horizons(world.error)
    order = _order(readings)
    measures = {"psnr": _psnr(readings)}
    looks: tuple[tuple[str, str, Literal["high", "low"], str], ...] = (
        ("ssim", "Structural similarity", "high", "Of one future of each clip."),
        ("perceptual", "LPIPS", "low", "Learned perceptual distance (AlexNet), of one future of each clip."),
    )
    for short, title, best, about in looks:
        values = {name: getattr(readings[name], short) for name in order}
        if all(value is not None for value in values.values()):
            name = "lpips" if short == "perceptual" else short
            measures[name] = Measure(
                title=title,
                unit="",
                best=best,
                about=about,
                horizons=horizons,
                curves={predictor: mean_curve(value) for predictor, value in values.items() if predictor != SHUFFLED},
            )
    if num > 1:
        measures["pixel_diversity"] = Measure(
            title="Diversity of the pixels",
            unit="spread / error",
            best=None,
            ideal=1.0,
            about="Spread of the futures over the error of their mean. 1 where futures differ as much as they are "
            "wrong; below it they are too much alike.",
            horizons=horizons,
            curves={WORLD: ratio_curve(world.spread, world.mean_error)},
        )
    return Found(measures=measures, numbers={}, tables={})


def _psnr(readings: Mapping[str, Reading]) -> Measure:
    world = readings[WORLD]
    mean = mean_name(len(world.summary))
    psnr = {name: decibel_curve(readings[name].error) for name in _order(readings)}
    return Measure(
        title="Peak signal-to-noise ratio",
        unit="dB",
        best="high",
        about=f"Of single frames; errors of all clips and futures are averaged before the logarithm. `{mean}` is the "
        "mean of the futures in pixel space, not rounded: the fair match of a predictor that answers with an average.",
        horizons=_horizons(world.error),
        curves={WORLD: psnr[WORLD], mean: decibel_curve(world.mean_error)}
        | {name: curve for name, curve in psnr.items() if name != WORLD},
    )


def physics(
    readings: Mapping[str, Reading], truth: Float64[np.ndarray, "clip time value"], *, names: list[str]
) -> Found:
    """Error of the probed state against the recorded one, and jumps of it.

    Args:
        readings: As `pictures`, and of the real frames.
        truth: The recorded state, in standard deviations.
        names: Of the state's coordinates that the probe reads.
    """
    squared = _squared_errors(readings, truth)
    measures = {
        "physics": Measure(
            title="Physics error",
            unit="state std",
            best="low",
            about="Root-mean-square error of the state that the probe reads, against the recorded state under the same "
            f"actions, over all coordinates, each in its standard deviations. `{REAL}`: the probe's own error.",
            horizons=_horizons(readings[WORLD].error),
            curves={name: rms_curve(values.mean(axis=-1)) for name, values in squared.items()},
        ),
        "physics_excess": _physics_excess(squared),
    }
    tables = {
        f"physics of {name}, by coordinate": {
            label: np.sqrt(values[..., k].mean(axis=0)) for k, label in enumerate(names)
        }
        for name, values in squared.items()
        if name != SHUFFLED
    }
    jumps = _jumps(readings)
    return Found(measures={**measures, **jumps.measures}, numbers=jumps.numbers, tables=tables)


def first_steps(
    readings: Mapping[str, Reading], truth: Float64[np.ndarray, "clip time value"] | None, num_clips: int
) -> Found:
    """Error of pixels and of the probed state, of many short clips; without a true state, of pixels alone."""
    found = {"psnr": _psnr(readings)}
    if truth is not None:
        found["physics_excess"] = _physics_excess(_squared_errors(readings, truth))
    measures = {
        f"near_{name}": replace(m, title=f"{m.title}, first steps", about=f"Of {num_clips} clips. {m.about}")
        for name, m in found.items()
    }
    return Found(measures=measures, numbers={}, tables={})


def _squared_errors(
    readings: Mapping[str, Reading], truth: Float64[np.ndarray, "clip time value"]
) -> dict[str, Float64[np.ndarray, "clip time value"]]:
    """Of the probed state, the real frames' included."""
    return {name: np.square(readings[name].summary - truth).mean(axis=0) for name in _order(readings, REAL)}


def _physics_excess(squared: Mapping[str, Float64[np.ndarray, "clip time value"]]) -> Measure:
    mean = {name: values.mean(axis=-1) for name, values in squared.items()}
    return Measure(
        title="Physics error above the probe's own",
        unit="state std",
        best="low",
        ideal=0.0,
        about="The same, minus the probe's error on the real frames of the same clips at the same times.",
        horizons=_horizons(mean[REAL]),
        curves={name: rms_excess_curve(values, mean[REAL]) for name, values in mean.items() if name != REAL},
    )


def _jumps(readings: Mapping[str, Reading]) -> Found:
    """The 99th percentile of the largest change of a coordinate from frame to frame."""
    order = [name for name in (WORLD, DETERMINISTIC, COPY, REAL) if name in readings]
    largest = {}
    for name in order:
        reading = readings[name]
        before = np.broadcast_to(
            reading.before[None, :, None], (*reading.summary.shape[:2], 1, reading.before.shape[-1])
        )
        change = np.abs(np.diff(np.concatenate((before, reading.summary), axis=2), axis=2)).max(axis=-1)
        largest[name] = change.astype(np.float64).swapaxes(0, 1)  # (clip, sample, time)

    def percentile(rows: np.ndarray) -> np.ndarray:
        return np.quantile(rows, 0.99, axis=(0, 1))

    measure = Measure(
        title="Jumps",
        unit="state std",
        best=None,
        about="99th percentile, over clips and futures, of the largest change of a probed coordinate within one step. "
        "Real frames show how fast the real thing moves; anything above is no motion but a jump.",
        horizons=_horizons(readings[WORLD].error),
        curves={name: resampled_curve(each, percentile, num_resamples=200) for name, each in largest.items()},
    )

    def ratio(imagined: np.ndarray, real: np.ndarray) -> float:
        return float(np.quantile(imagined, 0.99) / max(np.quantile(real, 0.99), 1e-9))

    pairs = np.concatenate((largest[WORLD], largest[REAL]), axis=1)
    low, high = bootstrap_interval(pairs, statistic=lambda rows: ratio(rows[:, :-1], rows[:, -1]), num_resamples=200)
    number = Number(
        title="jumps, imagined over real",
        value=ratio(largest[WORLD], largest[REAL]),
        low=float(low),
        high=float(high),
        about="99th percentile of the largest change within one step over all horizons, imagined over real frames.",
    )
    return Found(measures={"jumps": measure}, numbers={"jump_ratio": number}, tables={})


def permanence(
    readings: Mapping[str, Reading],
    truth: Float64[np.ndarray, "clip time value"] | None,
    is_permanent: Bool[np.ndarray, " value"] | None,
) -> Found:
    """Whether what is still stays: in the pixels, and in the state's coordinates that never change in an episode."""
    horizons = _horizons(readings[WORLD].error)
    order = [name for name in (WORLD, DETERMINISTIC, COPY, REAL) if name in readings]
    measures: dict[str, Measure] = {}
    numbers: dict[str, Number] = {}
    if readings[REAL].presence is not None:
        curves = {
            part: {name: mean_curve(getattr(readings[name], part)) for name in order} for part in ("presence", "kept")
        }
        measures["presence"] = Measure(
            title="Still object: presence",
            unit="share",
            best=None,
            ideal=1.0,
            about="How much is still seen of the pixels that stand still in the episode and differ between episodes: "
            "1 as it was, 0 vanished. In real frames something may pass in front of them.",
            horizons=horizons,
            curves=curves["presence"],
        )
        measures["still_in_place"] = Measure(
            title="Still object: within one pixel of its place",
            unit="share",
            best="high",
            ideal=1.0,
            about="Share of frames in which those pixels are seen best within one pixel of where they stood.",
            horizons=horizons,
            curves=curves["kept"],
        )
    if truth is not None and is_permanent is not None and is_permanent.any():
        drift = {name: np.square(readings[name].summary - truth)[..., is_permanent].mean(axis=-1) for name in order}
        measures["drift"] = Measure(
            title="Drift of permanent coordinates",
            unit="state std",
            best="low",
            about="Root-mean-square distance of the probed value from the recorded one, over the coordinates that are "
            f"constant within every episode. `{REAL}`: the probe's own error.",
            horizons=horizons,
            curves={name: rms_curve(each.mean(axis=0)) for name, each in drift.items()},
        )
        for name in order:
            largest = np.sqrt(drift[name]).max(axis=-1).mean(axis=0)
            low, high = bootstrap_interval(largest)
            numbers[f"largest_drift_{name.replace(' ', '_')}"] = Number(
                title=f"largest drift within the horizon, {name}",
                value=float(largest.mean()),
                unit="state std",
                low=float(low),
                high=float(high),
            )
    return Found(measures=measures, numbers=numbers, tables={})


def calibration(readings: Mapping[str, Reading], *, what: str) -> Found:
    """Ranks, coverage, CRPS and spread of the futures' summary numbers, against the same numbers of the real frames.

    Both are read by the same instrument, so that its own error does not count as a lack of calibration.

    Args:
        readings: Of the world, the baselines and the real frames.
        what: What the numbers are, for people.
    """
    world, real = readings[WORLD], readings[REAL].summary[0]
    num, horizons = len(world.summary), _horizons(world.error)
    found = futures.ranks(world.summary, real)
    measures = {
        "crps": Measure(
            title="CRPS of the future",
            unit="std",
            best="low",
            about=f"Continuous ranked probability score of {what}, in standard deviations; of a predictor with one "
            "answer its absolute error.",
            horizons=horizons,
            curves={
                name: mean_curve(futures.fair_crps(readings[name].summary, real).mean(axis=-1))
                for name in (WORLD, DETERMINISTIC, COPY)
                if name in readings
            },
        )
    }
    if num < 2:
        return Found(measures=measures, numbers={}, tables={})
    levels = [level for level, least in LEVELS.items() if num >= least]
    measures["coverage"] = Measure(
        title="Coverage",
        unit="share",
        best=None,
        about=f"How often {what} of the real frame lies within the central part of the futures that should hold "
        "half of all, or nine tenths.",
        horizons=horizons,
        curves={
            f"{level:.0%} interval": mean_curve(futures.coverage(found, num_futures=num, level=level).mean(axis=-1))
            for level in levels
        },
    )
    if not levels:
        del measures["coverage"]
    spread = futures.spread_variance(world.summary).mean(axis=-1)
    error = np.square(world.summary.astype(np.float64).mean(axis=0) - real).mean(axis=-1)
    measures["diversity"] = Measure(
        title=f"Diversity of {what}",
        unit="spread / error",
        best=None,
        ideal=1.0,
        about="Spread of the futures over the error of their mean; 1 for calibrated futures, below it they are too "
        "sure of themselves.",
        horizons=horizons,
        curves={WORLD: ratio_curve(spread, error)},
    )
    last = len(horizons)
    stretches = {f"steps {a} to {min(b, last)}": slice(a - 1, b) for a, b in ((1, 4), (5, 16), (17, last)) if a <= last}
    histograms = {
        name: futures.rank_histogram(found[:, stretch], num_futures=num) for name, stretch in stretches.items()
    }
    deviation = 0.5 * np.abs(futures.rank_histogram(found, num_futures=num) - 1 / (num + 1)).sum()
    numbers = {
        "rank_deviation": Number(
            title="ranks away from flat",
            value=float(deviation),
            unit="share",
            about="Share of the rank histogram, over all horizons, that lies elsewhere than in a flat one.",
        )
    }
    for level in levels:
        inside = futures.coverage(found, num_futures=num, level=level).mean(axis=(1, 2))
        low, high = bootstrap_interval(inside)
        numbers[f"coverage_{round(100 * level)}"] = Number(
            title=f"coverage of the central {level:.0%}",
            value=float(inside.mean()),
            unit="share",
            low=float(low),
            high=float(high),
        )
    return Found(measures=measures, numbers=numbers, tables={"rank histogram": histograms})


def frechet(readings: Mapping[str, Reading], episodes: Int64[np.ndarray, " clip"], *, encoder: str) -> Found:
    """Fréchet distance of clips from real clips of other episodes, cumulative over the horizon.

    The clips' episodes are dealt into two halves. Clips of one half, real or imagined, are compared with the real clips
    of the other half, and the two results averaged: every set has the same size, and the real one is the floor.
    """
    real = readings[REAL].features
    assert real is not None
    side = _halves(episodes)
    num_windows = real.shape[2]

    def distance(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
        folds = []
        for half in (0, 1):
            ours, theirs = rows[side[rows] == half], rows[side[rows] != half]
            for future in features:
                folds.append(
                    [
                        frechet_distance(_rows(future[ours, : w + 1]), _rows(real[0, theirs, : w + 1]))
                        for w in range(num_windows)
                    ]
                )
        return np.mean(folds, axis=0)

    curves = {}
    for name in (WORLD, DETERMINISTIC, COPY, REAL):
        if name in readings:
            features = readings[name].features
            assert features is not None
            curve = jackknife_curve(lambda rows, f=features: distance(f, rows), len(episodes))
            curves[name] = type(curve)(mean=curve.mean, low=np.maximum(curve.low, 0.0), high=curve.high)
    measure = Measure(
        title="Fréchet distance of clips (own encoder, no FVD)",
        unit="squared, in whitened features",
        best="low",
        about=f"Between clips of {WINDOW} frames up to the horizon and real clips of other episodes, on "
        f"{real.shape[-1]} features of `{encoder}`. It depends on the number of clips and compares with nothing but "
        f"the other lines; `{REAL}` is the floor.",
        horizons=tuple(WINDOW * (w + 1) for w in range(num_windows)),
        curves=curves,
    )
    return Found(measures={"frechet": measure}, numbers={}, tables={})


def _halves(episodes: np.ndarray) -> np.ndarray:
    """A side for each clip: whole episodes where there are two or more, as even as dealing makes them."""
    names, counts = np.unique(episodes, return_counts=True)
    if len(names) == 1:
        return np.arange(len(episodes)) % 2
    size, side = [0, 0], {}
    for k in np.argsort(-counts, kind="stable"):
        half = int(size[1] < size[0])
        side[names[k]] = half
        size[half] += int(counts[k])
    return np.array([side[e] for e in episodes])


def _rows(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1])


def _order(readings: Mapping[str, Reading], *more: str) -> list[str]:
    return [name for name in (WORLD, DETERMINISTIC, COPY, SHUFFLED, *more) if name in readings]


def _horizons(values: np.ndarray) -> tuple[int, ...]:
    return tuple(range(1, values.shape[1] + 1))
