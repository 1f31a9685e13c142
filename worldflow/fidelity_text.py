"""An evaluation as plain text: one short table a measure, for a terminal."""

from __future__ import annotations

import math

from worldflow.fidelity_types import Fidelity, Measure, Number

__all__ = ["as_text", "number_text", "table_rows"]

SHORT = (
    "psnr",
    "ssim",
    "physics",
    "physics_excess",
    "near_psnr",
    "near_physics_excess",
    "still_in_place",
    "drift",
    "reward",
    "termination",
    "coverage",
)


def as_text(fidelity: Fidelity) -> str:
    """The most telling measures over a few horizons, the numbers, and what was left out."""
    lines = []
    for name in SHORT:
        if name in fidelity.measures:
            lines += ["", *_table(fidelity.measures[name], fidelity.shown_horizons())]
    lines += [""] + [f"{number.title}: {number_text(number)}" for number in fidelity.numbers.values()]
    if fidelity.left_out:
        lines += ["", "left out:"] + [f"  {name}: {reason}" for name, reason in fidelity.left_out.items()]
    return "\n".join(lines).lstrip("\n")


def number_text(number: Number) -> str:
    """A number with its unit and interval."""
    unit = f" {number.unit}" if number.unit else ""
    if number.low is None or number.high is None:
        return f"{_short(number.value)}{unit}"
    return f"{_short(number.value)}{unit} ({_short(number.low)} to {_short(number.high)})"


def table_rows(measure: Measure, horizons: tuple[int, ...]) -> list[list[float | int | None]]:
    """Rows of horizon and each curve's value there; horizons at which the measure has none are skipped."""
    places = {h: k for k, h in enumerate(measure.horizons)}
    shown = [h for h in horizons if h in places] or list(measure.horizons)
    return [[h, *(float(curve.mean[places[h]]) for curve in measure.curves.values())] for h in shown]


def _table(measure: Measure, horizons: tuple[int, ...]) -> list[str]:
    names = list(measure.curves)
    widths = [max(9, len(name)) for name in names]
    unit = f" ({measure.unit})" if measure.unit else ""
    head = "  horizon" + "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))
    rows = [
        f"  {row[0]:>7}" + "".join(f"  {_short(value):>{width}}" for value, width in zip(row[1:], widths, strict=True))
        for row in table_rows(measure, horizons)
    ]
    return [f"{measure.title}{unit}", head, *rows]


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return (
        f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
    )
