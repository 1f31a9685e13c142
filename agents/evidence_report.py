"""The page of a comparison: what contenders reached for real, whether the world knew it, a film, the protocol."""

from __future__ import annotations

import os
from pathlib import Path

from worldflow.agents.agreement import SOLVED_WITHIN, Agreement
from worldflow.agents.evidence import Evidence
from worldflow.agents.evidence_figures import gap_figure, returns_figure, scatter_figure
from worldflow.report import Report
from worldflow.strips import strip_figure

__all__ = ["write_report"]


def write_report(evidence: Evidence, path: str | os.PathLike[str]) -> Path:
    """Write the page, whole or not at all.

    Args:
        evidence: What came out.
        path: The file; missing parent folders are made.

    Returns:
        `path` as a `Path`.
    """
    protocol = evidence.protocol
    report = Report(
        f"Agents in {protocol['environment']}",
        f"{protocol['episodes']} real episodes of every contender, on the same seeds",
    )
    _returns(report, evidence)
    if evidence.agreement is not None:
        _imagined(report, evidence.agreement)
    name, frames = evidence.film
    if frames.ndim == 4:  # vectors cannot be looked at
        report.section("The best contender")
        every = max(1, -(-len(frames) // 10))
        report.figure(
            strip_figure({"real": frames}, every=every),
            f"{name}, the real episode of seed {protocol['first seed']}, every {every} steps",
        )
    report.section("Protocol")
    report.keyvalues(protocol)
    report.text("All numbers, every episode among them, are in `evidence.json` beside this page.")
    return report.write(path)


def _returns(report: Report, evidence: Evidence) -> None:
    reference = evidence.standing(evidence.reference)
    ahead = f"ahead of {reference.name}"
    rows = []
    for one in evidence.standings:
        plain = one.to_plain()
        rows.append(
            [
                one.name,
                one.real_steps,
                one.mean.value,
                "" if one.mean.low is None else f"{one.mean.low:.4g} to {one.mean.high:.4g}",
                "" if one is reference else one.ahead_of(reference).text(),
                plain["mean_length"],
                1e3 * plain["seconds_per_decision"],
            ]
        )
    report.section("Returns in the real environment")
    report.figure(returns_figure(evidence.standings))
    report.table(
        ["contender", "real steps learned from", "mean return", "95 % interval", ahead, "steps", "ms a decision"],
        rows,
        formats={"mean return": ".4g", "steps": ".4g", "ms a decision": ".2g"},
        best_in_column={"mean return": max},
    )
    report.text("\n".join(f"- **{one.name}**: {one.about}" for one in evidence.standings))
    report.text(
        "Intervals are bootstrap ones over episodes; differences are of the same seeds. Real steps are those that an "
        "agent learned from, or the world that it was trained in or plans in. Who was trained for real on tokens sees "
        "by a codec that was trained on the world's recordings, which are not counted."
    )


def _imagined(report: Report, found: Agreement) -> None:
    solved, total = int(found.solved.sum()), len(found.solved)
    report.section("Imagined against real return")
    report.text(
        f"The same policies go on from the same {total} starts, for real and in the world. A start is solved already "
        f"if doing nothing comes within {SOLVED_WITHIN:.0%} of the best policy's mean return: {solved} of them are."
    )
    lines = {
        "Rank correlation of the policies' mean returns": found.rank,
        f"with {found.weight:g} taken off for each nat per dimension that frames are stranger than usual": (
            found.rank_penalized
        ),
        "without starts that are solved already": found.rank_unsolved if solved else None,
    }
    report.text("\n".join(f"- {name}: **{one.text('.2f')}**" for name, one in lines.items() if one))
    report.figure(scatter_figure(found), "A strong point a policy, a faint one each of its starts; square: replayed")
    report.figure(scatter_figure(found, is_penalized=True), "The same with the in-distribution term")
    report.figure(gap_figure(found), "Imagined minus real return up to each step, the mean over policies and starts")
    if any(one.is_replayed for one in found.policies):
        report.text(
            "What replayed policies did for real is repeated in the world, as they ask for more than frames there: "
            "they cannot answer to what the world shows."
        )
    report.table(
        ["policy", "real", "imagined", "with in-distribution term"],
        [
            [
                f"{one.name} (replayed)" if one.is_replayed else one.name,
                *(float(values[:, -1].mean()) for values in (one.real, one.imagined, one.penalized(found.weight))),
            ]
            for one in found.policies
        ],
        caption="Mean return over the horizon",
        formats=dict.fromkeys(("real", "imagined", "with in-distribution term"), ".4g"),
    )
