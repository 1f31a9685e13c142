"""The page of an evaluation on anomalies: what was found, what would have found it anyway, and what it looks like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldflow import figures
from worldflow.anomaly_cases import CONTROL, NORMAL, Case
from worldflow.anomaly_figures import alarm_figure, calibration_figure, delay_figure
from worldflow.anomaly_judge import NOTHING, Evidence
from worldflow.anomaly_store import Judged
from worldflow.atomic import write_bytes
from worldflow.combination import DEFAULT_COMBINATION
from worldflow.detector import Detector
from worldflow.report import Report
from worldflow.surprise_views import surprise_meter, token_heat
from worldflow.video import encode_video, film_strip

__all__ = ["as_text", "write_evidence"]

SHOWN = ("frame_unlikely", "action", "gain_low", "foresight", "normality", "pixels")
"""Statistics of the large table; the others are in the file."""
LIKELIHOOD = ("frame_unlikely", "frame_two_sided", "typicality_two_sided", "normality", "action", "context", "pixels")
"""What pictures that are too simple are held against."""
FILMS = ("gravity, middle", "actuator_gain, middle", "occlusion, middle", "frozen_frame, middle", "teleport, middle")
RATE = 0.01


def write_evidence(
    evidence: Evidence,
    found: Mapping[str, tuple[Case, Judged]],
    detectors: Mapping[str, Detector],
    *,
    out: Path,
    grid: tuple[int, int],
) -> Path:
    """Write `anomalies.json`, `anomalies.html` and `surprise.gif`.

    Args:
        evidence: What was found.
        found: Cases and what was scored of them.
        detectors: By combination.
        out: The folder.
        grid: Rows and columns of tokens.

    Returns:
        The page.
    """
    write_bytes(out / "anomalies.json", json.dumps(evidence.to_plain(), indent=1).encode())
    report = Report(
        f"Anomalies in {evidence.protocol['environment']}",
        f"{len(evidence.rows)} cases, {evidence.protocol['episodes']} episodes each, from transition "
        f"{evidence.protocol['onset'][0]} to {evidence.protocol['onset'][1]} on; nothing is fitted to an anomaly",
    )
    chosen = DEFAULT_COMBINATION
    report.headline(
        {
            f"AUROC of single transitions, {chosen}, middle strength": evidence.summary(chosen, window=1)["auroc"],
            "over 8 transitions": evidence.summary(chosen, window=8)["auroc"],
            "over 50": evidence.summary(chosen, window=50)["auroc"],
            "best baseline's lead at most, 8 transitions": evidence.summary(chosen, window=8)["behind_baseline"],
        },
        formats=dict.fromkeys(
            (
                f"AUROC of single transitions, {chosen}, middle strength",
                "over 8 transitions",
                "over 50",
                "best baseline's lead at most, 8 transitions",
            ),
            ".3f",
        ),
    )
    _found(report, evidence)
    _looks(report, found, detectors[chosen], out=out, grid=grid)
    _strengths(report, evidence)
    _combinations(report, evidence)
    _simple(report, evidence)
    report.section("Protocol")
    report.keyvalues(
        {k: v if isinstance(v, (int, float, type(None))) else str(v) for k, v in evidence.protocol.items()}
    )
    report.text("All numbers, every statistic, window, strength and delay, are in `anomalies.json` beside this page.")
    return report.write(out / "anomalies.html")


def as_text(evidence: Evidence) -> str:
    """What a terminal shows: each case by the combination, the best statistic and the best baseline."""
    chosen = DEFAULT_COMBINATION
    lines = [f"{'AUROC over 8 transitions':30}{chosen:>10}{'statistic':>24}{'baseline':>26}{'delay':>8}"]
    for name, row in evidence.rows.items():
        if not row.separation:
            continue
        statistic = max(evidence.statistics, key=lambda s, n=name: evidence.auroc(n, s, window=8))
        baseline = max(evidence.baselines, key=lambda s, n=name: evidence.auroc(n, s, window=8))
        wait = row.delay[chosen].median if chosen in row.delay else np.inf
        lines.append(
            f"{name:30}{evidence.auroc(name, chosen, window=8):10.2f}"
            f"{statistic:>19} {evidence.auroc(name, statistic, window=8):.2f}"
            f"{baseline:>21} {evidence.auroc(name, baseline, window=8):.2f}"
            f"{'never' if np.isinf(wait) else f'{wait:.0f}':>8}"
        )
    return "\n".join(lines)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _found(report: Report, evidence: Evidence) -> None:
    report.section("What is found")
    report.text(
        "Area under the ROC curve at the middle strength: 1 separates, 0.5 is chance. Each number is of a window of "
        "eight transitions; baselines stand at the right. The other policy, in the same dynamics, is no anomaly: what "
        "asks whether frames follow from actions must not tell it. Where nothing was done, few normal episodes are "
        "held against the others: so far do areas differ from 0.5 by chance."
    )
    names = [*evidence.at("middle"), *evidence.at("subtle"), CONTROL, *([NOTHING] if NOTHING in evidence.rows else [])]
    columns = [DEFAULT_COMBINATION, *(s for s in SHOWN if s in evidence.statistics), *evidence.baselines]
    table = {
        _plain(name): {_plain(c): evidence.auroc(name, c, window=8) for c in columns}
        for name in names
        if evidence.rows[name].separation
    }
    report.figure(figures.auroc_figure(table, baselines=evidence.baselines), "Anomalies by statistics")


def _looks(
    report: Report, found: Mapping[str, tuple[Case, Judged]], detector: Detector, *, out: Path, grid: tuple[int, int]
) -> None:
    report.section("What it looks like")
    report.text(
        "Episodes with their alarms: p-values among normal transitions on a logarithmic scale, alarms as points, the "
        "transitions that an anomaly affects shaded, and their frames edged."
    )
    shown = [name for name in (NORMAL, *FILMS) if name in found]
    for name in shown:
        judged = found[name][1]
        (alarms,) = detector(judged.scores[:1])
        title = "normal" if name == NORMAL else name
        figure = alarm_figure(
            judged.frames, alarms.p_value, rate=RATE, active=judged.scores[0].anomaly, title=_plain(title)
        )
        report.figure(figure)
    film = next((name for name in ("object_gone, middle", "teleport, middle") if name in found), shown[-1])
    judged = found[film][1]
    (alarms,) = detector(judged.scores[:1])
    frames, token = judged.frames, judged.scores[0].token
    if token is not None:
        usual = np.concatenate([s.token for s in found[NORMAL][1].scores if s.token is not None])
        low = float(np.median(usual))
        frames = token_heat(frames, token, grid=grid, low=low, high=max(float(token.max()), low + 1))
        at = int(np.argmax(judged.scores[0].anomaly)) if judged.scores[0].anomaly is not None else 0
        strip = slice(max(0, at - 2), at + 10)
        picture = film_strip(
            judged.frames[1:][strip], frames[1:][strip], labels=("seen", "surprise"), first=strip.start
        )
        report.image(
            picture, f"{film}: what each token cost, red over the frame, from the normal median to the highest here"
        )
    meter = surprise_meter(frames, -np.log10(alarms.p_value), full=3.0, rings=alarms.transition)
    video = encode_video(meter, suffix=".gif", fps=10, num_colors=64)
    write_bytes(out / "surprise.gif", video)
    report.video(video, f"{film}, with the surprise meter")


def _strengths(report: Report, evidence: Evidence) -> None:
    report.section("Strengths and delays")
    report.text(
        f"The combination `{DEFAULT_COMBINATION}` beside the best baseline, whichever that is. The delay counts "
        "transitions from the first affected one to the first alarm of the median episode, at a threshold that 1 % of "
        "normal transitions exceed; a dash is never. Precision depends on how many windows of either kind there are."
    )
    chosen, rows = DEFAULT_COMBINATION, []
    for name, row in evidence.rows.items():
        if row.kind == "simple" or not row.separation:
            continue
        one, wait = row.separation[1][chosen], row.delay.get(chosen)
        rows.append(
            [
                _plain(name),
                *(evidence.auroc(name, chosen, window=w) for w in (1, 8, 50)),
                evidence.best_baseline(name, window=8),
                one.auprc,
                None if wait is None or np.isinf(wait.median) else str(int(wait.median)),
                None if wait is None else wait.found,
                one.windows,
            ]
        )
    heads = ["case", "AUROC, 1", "8", "50 steps", "best baseline, 8", "AUPRC, 1", "delay", "found", "transitions"]
    report.table(heads, rows, formats={name: ".2f" for name in heads[1:8] if name != "delay"})
    if evidence.delays:
        report.figure(
            delay_figure(evidence.delays),
            "Delay of the median episode, over all anomalies of a strength, against the share of normal episodes that "
            "ring: single transitions, cumulative sums, and an e-process",
        )


def _combinations(report: Report, evidence: Evidence) -> None:
    report.section("Which combination")
    report.text(
        "Mean areas at the middle strength, the lowest of them, and by how much the best baseline is ahead where it is "
        "most. Combinations are fitted to normal episodes; only the choice among their names saw anomalies."
    )
    rows = []
    for name in (*evidence.combinations, *evidence.statistics, *evidence.baselines):
        each = [evidence.summary(name, window=w) for w in (1, 8, 50)]
        rows.append([name, *(s["auroc"] for s in each), each[1]["lowest"], each[1]["behind_baseline"]])
    heads = ["number", "AUROC, 1", "8", "50 steps", "lowest, 8", "baseline's lead, 8"]
    report.table(heads, rows, formats=dict.fromkeys(heads[1:], ".3f"), best_in_column=dict.fromkeys(heads[1:5], max))
    report.figure(
        calibration_figure(evidence.promised, evidence.kept),
        "Alarms of single transitions on fresh normal episodes, over the promised rate",
    )


def _simple(report: Report, evidence: Evidence) -> None:
    report.section("Pictures that are too simple")
    report.text(
        "Densities of pictures are known to find simple ones likely. Normal episodes whose frames from some transition "
        "on are black, of one color, the mean frame, blurred, or stand still: the raw NLL beside what repairs it, as "
        "areas under the ROC curve over single transitions."
    )
    columns = [s for s in LIKELIHOOD if s in evidence.statistics]
    names = [name for name, row in evidence.rows.items() if row.kind == "simple"]
    rows: list[Sequence[Any]] = [
        [
            name.removeprefix("simple: "),
            *(evidence.auroc(name, c, window=1) for c in columns),
            evidence.auroc(name, DEFAULT_COMBINATION, window=1),
        ]
        for name in names
    ]
    heads = ["frames", *("raw NLL" if c == "frame_unlikely" else _plain(c) for c in columns)]
    heads.append(DEFAULT_COMBINATION)
    report.table(heads, rows, formats=dict.fromkeys(heads[1:], ".2f"), best_in_row=max)
