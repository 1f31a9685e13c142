"""The page of an evaluation: what was imagined, every measure with its baselines, what was left out, the protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from worldflow import fidelity_figures
from worldflow.fidelity_text import number_text, table_rows
from worldflow.fidelity_types import COPY, WORLD, Fidelity
from worldflow.report import Report
from worldflow.video import encode_video

__all__ = ["write_report"]

SECTIONS = {
    "Looks": ("psnr", "ssim", "lpips", "frechet"),
    "Physics": ("physics", "physics_excess", "jumps"),
    "First steps, from anywhere in the episodes": ("near_psnr", "near_physics_excess"),
    "Permanence": ("still_in_place", "presence", "drift"),
    "Reward and termination": ("reward", "termination"),
    "Actions and likelihood": ("nll",),
    "Calibration and diversity": ("coverage", "crps", "diversity", "pixel_diversity"),
    "Long rollouts": ("long",),
}
NUMBERS = {
    "Physics": ("jump_ratio",),
    "Permanence": ("largest_drift_world", "largest_drift_deterministic", "largest_drift_real_frames"),
    "Reward and termination": (
        "termination_auroc",
        "termination_log_loss",
        "termination_log_loss_base_rate",
        "termination_auroc_one_step",
    ),
    "Actions and likelihood": ("nll", "action_gap"),
    "Calibration and diversity": ("coverage_50", "coverage_90", "rank_deviation"),
    "Long rollouts": ("long_drift",),
}


def write_report(fidelity: Fidelity, path: str | os.PathLike[str]) -> Path:
    """Write the page, whole or not at all.

    Args:
        fidelity: What was measured.
        path: The file; missing parent folders are made.

    Returns:
        `path` as a `Path`.
    """
    protocol = fidelity.protocol
    name = Path(str(protocol["run"])).name if protocol["run"] else "a world"
    report = Report(
        f"Fidelity of {name}",
        f"{protocol['clips']} held-out clips of {protocol['data set id']}, {protocol['samples']} futures each, "
        f"{protocol['horizon']} steps ahead",
    )
    values, formats = _headline(fidelity)
    report.headline(values, formats=formats)
    report.section("Imagined against real")
    report.text(
        f"Each clip starts from {protocol['past'] + 1} real frames of an episode that was never trained on. From there "
        "on everybody sees the recorded actions only. A future is one draw; the mean is over all draws."
    )
    clip = fidelity_figures.moving_clips(fidelity.pictures)
    report.video(encode_video(clip, suffix=".gif", fps=8, num_colors=48, tolerance=8), "Held-out clips")
    report.figure(fidelity_figures.clip_figure(fidelity.pictures, 0), "The first of them as a film strip")
    for title, names in SECTIONS.items():
        _section(report, fidelity, title, names)
    if fidelity.left_out:
        report.section("Left out")
        report.text("\n".join(f"- **{what}**: {reason}" for what, reason in fidelity.left_out.items()))
    report.section("Protocol")
    settings = {key: value for key, value in protocol.items() if key != "versions"}
    report.keyvalues(_cells(settings | {f"{key} version": v for key, v in protocol["versions"].items()}))
    report.text("All numbers, in full and by coordinate of the state, are in `fidelity.json` beside this page.")
    return report.write(path)


def _headline(fidelity: Fidelity) -> tuple[dict[str, float], dict[str, str]]:
    values: dict[str, float] = {}
    formats: dict[str, str] = {}
    shown = [h for h in (1, 16) if h <= fidelity.protocol["horizon"]]
    psnr = fidelity.measures["psnr"]
    for h in shown:
        name = f"dB over copying the last frame, {h} step{'s' if h > 1 else ''} ahead"
        values[name], formats[name] = psnr.at(WORLD, h) - psnr.at(COPY, h), "+.1f"
    if "physics_excess" in fidelity.measures:
        name = f"state std, physics error above the probe's at {shown[-1]} steps"
        values[name], formats[name] = fidelity.measures["physics_excess"].at(WORLD, shown[-1]), ".2f"
    if "action_gap" in fidelity.numbers:
        name = "nats / dim, worse under another clip's actions"
        values[name], formats[name] = fidelity.numbers["action_gap"].value, ".3f"
    return values, formats


def _section(report: Report, fidelity: Fidelity, title: str, names: tuple[str, ...]) -> None:
    found = {name: fidelity.measures[name] for name in names if name in fidelity.measures}
    numbers = [fidelity.numbers[name] for name in NUMBERS.get(title, ()) if name in fidelity.numbers]
    if not found and not numbers:
        return
    report.section(title)
    if numbers:
        lines = (f"- **{n.title}**: {number_text(n)}{f'. {n.about}' if n.about else ''}" for n in numbers)
        report.text("\n".join(lines))
    for name, measure in found.items():
        report.text(f"**{measure.title}.** {measure.about}")
        xlabel = "step" if name == "long" else "horizon (steps)"
        report.figure(fidelity_figures.measure_figure(measure, xlabel=xlabel))
        if name == "coverage" and "rank histogram" in fidelity.tables:
            report.figure(
                fidelity_figures.rank_figure(fidelity.tables["rank histogram"]),
                "Where the truth ranks among the futures: flat is calibrated, a U is too sure, a hill too vague",
            )
        horizons = fidelity.shown_horizons() if name != "long" else tuple(measure.horizons[4::10])
        report.table(
            ["horizon", *measure.curves],
            [_marked(row) for row in table_rows(measure, horizons)],
            caption=f"{measure.title}{f', {measure.unit}' if measure.unit else ''}",
            formats=dict.fromkeys(measure.curves, ".3f" if measure.unit != "dB" else ".1f"),
        )
    if title == "Long rollouts" and (strip := fidelity_figures.long_figure(fidelity.pictures)) is not None:
        report.figure(strip, "Long rollouts, the step above the columns")


def _marked(row: list[Any]) -> list[Any]:
    return [str(row[0]), *row[1:]]


def _cells(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, (int, float, type(None))) else str(value) for key, value in settings.items()
    }
