"""The whole path in minutes: record a real task, learn it, step it, score it, and report what came out.

    collect -> train -> step the learned environment -> imagined against real -> normal against perturbed -> report

Everything it states stands beside a baseline: the copied last frame for pictures, the mean for rewards, the difference
between frames for detection.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldflow.atomic import write_bytes
from worldflow.data import Dataset
from worldflow.detection import BASELINE, SMOOTHING, DetectionTable, anomaly_labels, detection_table, statistics
from worldflow.evaluate import RolloutReport, rollout_report
from worldflow.log import read_log
from worldflow.score import EpisodeScores, score
from worldflow.train import train
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from worldflow.types import Episode

__all__ = ["DemoConfig", "demo"]

POLICY = "worldflow.envs.policies:PendulumSwayer"
SHOWN = ("gravity", "actuator_gain", "teleport", "sensor_noise", "frozen_frame")
"""One anomaly of each sort, of the twenty that there are."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo does; also the options of `worldflow demo`."""

    out: str = "runs/demo"
    """Folder for data, world and report; an earlier demo there is replaced."""
    env: str = "worldflow/InvertedPendulum-v0"
    """The real environment: an inverted pendulum, which is what the demo's policy can drive."""
    episodes: int = 300
    """Episodes to record."""
    minutes: float = 3.5
    """Minutes to train, codec and flow together."""
    horizon: int = 16
    """Steps to imagine ahead."""
    rollouts: int = 96
    """Held-out rollouts to compare."""
    samples: int = 4
    """Futures to imagine of each."""
    scored: int = 12
    """Fresh episodes to score, normal ones and of each anomaly."""
    speed_seconds: float = 4.0
    """Seconds for which the learned environment's speed is measured, for each batch size."""
    seed: int = 0
    """Seed of everything."""


class _Stages:
    """Seconds spent in each stage, said aloud."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[None]:
        print(f"{name}: {what}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 2)


def demo(config: DemoConfig | None = None) -> Path:
    """Run the whole path and write `report.html` and `summary.json`.

    Args:
        config: What to do.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds data or a world that no demo made.
    """
    from worldflow.envs.collect import collect, record_episode
    from worldflow.envs.policies import PendulumSwayer

    config = config or DemoConfig()
    out = Path(config.out)
    _clear_earlier_demo(out)
    stages, start = _Stages(), time.monotonic()

    with stages("collect", f"{config.episodes} episodes of {config.env} from pixels"):
        collect(config.env, out=out / "data" / "pendulum", episodes=config.episodes, policy=POLICY, seed=config.seed)
        dataset = Dataset(out / "data" / "pendulum")
    with stages("train", f"codec and flow, {config.minutes:g} minutes on {torch.get_num_threads()} threads"):
        world = train(
            dataset,
            out=out / "world",
            preset="tiny",
            minutes=config.minutes,
            codec_share=0.2,
            eval_every=1.0,
            seed=config.seed,
        )
    with stages("step", "the learned environment, one and sixteen at a time"):
        speed = {num: _steps_per_second(world, num_envs=num, config=config) for num in (1, 16)}
    with stages("imagine", f"{config.rollouts} held-out rollouts, {config.horizon} steps ahead"):
        rollouts = rollout_report(
            world,
            dataset,
            horizon=config.horizon,
            num_clips=config.rollouts,
            num_samples=config.samples,
            seed=config.seed,
        )
    with stages("score", f"{config.scored} fresh episodes, normal and of each anomaly"):
        episodes = {
            name: [
                record_episode(env, PendulumSwayer(env.action_space), seed=10_000 + config.seed + i)
                for i in range(config.scored)
            ]
            for name, env in _scored_environments(config.env).items()
        }
        scores = {name: score(world, recorded, pixels=False, progress=False) for name, recorded in episodes.items()}
        table = detection_table(scores, episodes, normal="normal")
    with stages("report", "figures and moving pictures"):
        summary = _summary(config, rollouts, table, speed, dataset)
        _report(out, summary, rollouts, scores, episodes)
    summary["seconds"] = {**stages.seconds, "total": round(time.monotonic() - start, 2)}
    write_bytes(out / "summary.json", json.dumps(summary, indent=1).encode())
    _print(summary)
    print(f"\nreport: {out / 'report.html'}\nnumbers: {out / 'summary.json'}")
    return out


def _clear_earlier_demo(out: Path) -> None:
    """Make room for data and world, but only where a mark says that what stands there is a demo's own."""
    mark, folders = out / ".worldflow-demo", [out / "data", out / "world"]
    for folder in folders:
        if folder.exists() and not mark.exists():
            raise FileExistsError(f"{folder} was not made by a demo and would be replaced; choose another --out")
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
    write_bytes(mark, b"data/ and world/ beside this file are replaced by the next demo\n")


def _scored_environments(env_id: str) -> dict[str, Any]:
    from worldflow.envs import Perturb
    from worldflow.envs.collect import make_pixel_env

    made = {"normal": make_pixel_env(env_id)}
    for name in SHOWN:
        made[name] = Perturb(make_pixel_env(env_id), name)
    return made


def _steps_per_second(world: WorldModel, *, num_envs: int, config: DemoConfig) -> float:
    """Environment steps per second of the learned environment under random actions, frames decoded."""
    from worldflow.envs.learned import LearnedVectorEnv

    envs = LearnedVectorEnv(num_envs=num_envs, world=world)
    envs.reset(seed=config.seed)
    envs.action_space.seed(config.seed)
    for _ in range(3):
        envs.step(envs.action_space.sample())
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < config.speed_seconds:
        envs.step(envs.action_space.sample())
        steps += num_envs
    envs.close()
    return steps / (time.monotonic() - start)


def _summary(
    config: DemoConfig, rollouts: RolloutReport, table: DetectionTable, speed: Mapping[int, float], dataset: Dataset
) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "transitions": int(np.sum(dataset.lengths)),
        "held_out_rollouts": int(rollouts.is_whole.sum()),
        "psnr": {
            "horizon": list(range(1, config.horizon + 1)),
            "model": [round(float(v), 3) for v in rollouts.model.mean],
            "model_interval": [
                [round(float(a), 3), round(float(b), 3)]
                for a, b in zip(rollouts.model.low, rollouts.model.high, strict=True)
            ],
            "copy_last": [round(float(v), 3) for v in rollouts.copy_last.mean],
        },
        "reward_error": asdict(rollouts.reward),
        "auroc": table.auroc,
        "env_steps_per_second": {str(num): round(value, 1) for num, value in speed.items()},
    }


def _report(
    out: Path,
    summary: Mapping[str, Any],
    rollouts: RolloutReport,
    scores: Mapping[str, Sequence[EpisodeScores]],
    episodes: Mapping[str, Sequence[Episode]],
) -> None:
    from worldflow import figures
    from worldflow.report import Report
    from worldflow.strips import imagined_figure
    from worldflow.video import encode_video

    psnr, reward, config = summary["psnr"], summary["reward_error"], summary["config"]
    horizon, speed = config["horizon"], summary["env_steps_per_second"]
    report = Report("worldflow demo", f"{config['env']}: recorded, learned, stepped and scored on this machine")
    gain = psnr["model"][-1] - psnr["copy_last"][-1]
    detected = sum(max(v for k, v in row.items() if k != BASELINE) >= 0.9 for row in summary["auroc"].values())
    report.headline(
        {
            f"dB over copying the last frame, {horizon} steps ahead": gain,
            "steps/s, one environment": speed["1"],
            "steps/s, sixteen": speed["16"],
            f"of {len(summary['auroc'])} anomalies at AUROC 0.9 or more": detected,
        },
        formats={
            f"dB over copying the last frame, {horizon} steps ahead": "+.1f",
            "steps/s, one environment": ".0f",
            "steps/s, sixteen": ".0f",
        },
    )

    report.section("Imagined against real")
    report.text(
        f"Each clip starts from {rollouts.past + 1} real frames of an episode that was never trained on. From there on "
        "the world sees only the recorded actions: left the real frames, right one drawn future."
    )
    real = rollouts.clips.frames[rollouts.is_whole][:, rollouts.past + 1 :].numpy()
    imagined = rollouts.dream.frames[0].cpu()[rollouts.is_whole].numpy()
    clip = _mosaic(real, imagined, count=4)
    write_bytes(out / "imagined.gif", encode_video(clip, suffix=".gif", fps=8, num_colors=64, tolerance=6))
    report.video(out / "imagined.gif", "Real beside imagined, four held-out clips")
    report.figure(imagined_figure(real[:3], imagined[:3]), "The same, as film strips: real above imagined")
    report.figure(
        figures.horizon_figure(
            {"model": psnr["model"], "copy last": psnr["copy_last"]},
            intervals={
                "model": (rollouts.model.low, rollouts.model.high),
                "copy last": (rollouts.copy_last.low, rollouts.copy_last.high),
            },
        ),
        f"PSNR over {summary['held_out_rollouts']} rollouts, {config['samples']} samples each, with 95 % intervals",
    )
    shown = [h for h in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64) if h <= horizon]
    report.table(
        ["horizon", "model", "copy last"],
        [[h, psnr["model"][h - 1], psnr["copy_last"][h - 1]] for h in shown],
        caption="PSNR, dB",
        formats={"model": ".1f", "copy last": ".1f"},
        best_in_row=None,
    )
    report.table(
        ["reward", "RMS error"],
        [["expected by the model", reward["model"]], ["mean of the training rewards", reward["constant"]]],
        caption="Reward over all imagined transitions, ends of episodes at every horizon",
        formats={"RMS error": ".4f"},
        best_in_column={"RMS error": min},
    )

    report.section("Surprise")
    report.text(
        "Fresh episodes of the same policy, normal ones and ones in which something goes wrong. The statistic is the "
        "frame's negative log-likelihood above the noise floor, averaged over eight transitions; the shade marks the "
        "transitions that the anomaly affects."
    )
    smooth = f"frame, {SMOOTHING}-step mean"
    lines = {name: statistics(scores[name][0], episodes[name][0])[smooth] for name in scores}
    report.figure(
        figures.timeline_figure(
            lines,
            active={name: anomaly_labels(episodes[name][0]) for name in scores},
            is_compressed=True,
            ylabel="nats / dim",
        ),
        "One episode of each kind",
    )
    report.figure(figures.auroc_figure(summary["auroc"]), "AUROC over transitions: 1 separates, 0.5 is chance")

    report.section("Training")
    history = read_log(out / "world")
    report.figure(figures.training_figure(history), "The flow's loss")
    report.keyvalues({**config, "transitions recorded": summary["transitions"], "threads": torch.get_num_threads()})
    report.write(out / "report.html")


def _mosaic(real: np.ndarray, imagined: np.ndarray, *, count: int) -> np.ndarray:
    """Pairs of clips in one, two pairs a row."""
    from worldflow.video import beside

    pairs = [beside(real[i], imagined[i], labels=("real", "imagined")) for i in range(min(count, len(real)))]
    if len(pairs) % 2:
        pairs.append(np.full_like(pairs[0], 255))
    gap = np.full((*pairs[0].shape[:2], 16, 3), 255, dtype=np.uint8)
    rows = [np.concatenate((pairs[i], gap, pairs[i + 1]), axis=2) for i in range(0, len(pairs), 2)]
    return np.concatenate(rows, axis=1)


def _print(summary: Mapping[str, Any]) -> None:
    psnr, reward = summary["psnr"], summary["reward_error"]
    print(f"\nPSNR (dB), {summary['held_out_rollouts']} held-out rollouts\n  horizon    model  copy last")
    for h in (1, 2, 4, 8, 12, 16):
        if h <= len(psnr["model"]):
            print(f"  {h:7d} {psnr['model'][h - 1]:8.1f} {psnr['copy_last'][h - 1]:10.1f}")
    print(f"\nreward, RMS error: model {reward['model']:.4f}, mean of training {reward['constant']:.4f}")
    names = list(next(iter(summary["auroc"].values())))
    print("\nAUROC" + " " * 11 + "  ".join(f"{name:>18}" for name in names))
    for anomaly, row in summary["auroc"].items():
        print(f"  {anomaly:14}" + "  ".join(f"{row[name]:18.2f}" for name in names))
    speed = ", ".join(f"{value:.0f} at batch {num}" for num, value in summary["env_steps_per_second"].items())
    print(f"\nlearned environment, steps/s: {speed}")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items()))
