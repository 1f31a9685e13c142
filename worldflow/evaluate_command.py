"""`worldflow evaluate`: how true futures are, or how well scores find anomalies, as a page and a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from worldflow.fidelity import EvaluateConfig, evaluate
from worldflow.fidelity_text import as_text

__all__ = ["Evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure how faithful a learned world is, on held-out episodes, beside its baselines."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, as `worldflow train --out` wrote it, or the name of a world that ships."""
    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """Folder of the data set; only its held-out episodes are measured on."""
    out: str
    """Folder for report.html and fidelity.json; with --anomalies, for anomalies.html, anomalies.json and surprise.gif.
    """
    anomalies: bool = False
    """Measure how well scores find labeled anomalies instead, in fresh episodes of the recorded environment; about
    fifteen minutes of one core, a third of them for the next-frame predictor. What was finished is kept: the same call
    goes on."""
    episodes: int = 6
    """With --anomalies: episodes of each anomaly and strength."""
    normal: int = 48
    """With --anomalies: normal episodes to calibrate with, and as many to compare with."""
    steps: int = 72
    """With --anomalies: transitions after which an episode is cut off."""
    env: str | None = None
    """With --anomalies: environment to play in, if not the recorded one."""
    policy: str | None = None
    """With --anomalies: who acts, if not who acted in the recording."""
    json: bool = False
    """Print everything as JSON."""
    config: OmitArgPrefixes[EvaluateConfig] = field(default_factory=EvaluateConfig)
    """How to evaluate."""

    def __call__(self) -> dict[str, Any]:
        """Evaluate."""
        if Path(self.out).is_file():
            raise NotADirectoryError(f"--out must name a folder, got the file {self.out}")
        if self.anomalies:
            return self._anomalies()
        fidelity = evaluate(self.run, self.dataset, out=self.out, config=self.config)
        files = {"report": str(Path(self.out) / "report.html"), "numbers": str(Path(self.out) / "fidelity.json")}
        if self.json:
            return files | fidelity.to_plain()
        print(as_text(fidelity), end="\n\n")
        return files

    def _anomalies(self) -> dict[str, Any]:
        from worldflow import anomaly_evidence, anomaly_report

        minutes = self.config.baseline_minutes
        config = anomaly_evidence.AnomalyConfig(
            episodes=self.episodes,
            normal=self.normal,
            steps=self.steps,
            env=self.env,
            policy=self.policy,
            baseline_minutes=anomaly_evidence.AnomalyConfig.baseline_minutes if minutes is None else minutes,
            seed=self.config.seed,
            device=self.config.device,
        )
        evidence = anomaly_evidence.gather(self.run, self.dataset, out=self.out, config=config)
        names = {"report": "anomalies.html", "numbers": "anomalies.json"}
        files = {what: str(Path(self.out) / name) for what, name in names.items()}
        if self.json:
            return files | evidence.to_plain()
        print(anomaly_report.as_text(evidence), end="\n\n")
        return files
