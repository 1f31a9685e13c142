"""The command line does the whole path, and says in one line what it cannot do."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium import spaces

import worldflow
from worldflow import cli, score_command
from worldflow.agents.compare_config import CompareConfig
from worldflow.agents.dream_config import DreamConfig
from worldflow.agents.improve_config import ImproveConfig
from worldflow.anomaly_evidence import AnomalyConfig
from worldflow.data import Dataset
from worldflow.density import FitConfig

Run = Callable[..., tuple[int, str, str]]


class BlinkEnv(gym.Env[np.ndarray, np.ndarray]):
    """A gray frame of 32x32 that the first component of the action brightens; 12 steps."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, *, action_dim: int = 2) -> None:
        self.observation_space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._frame(0.0), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._frame(float(action[0])), float(action[0]), False, self.count == 12, {}

    def _frame(self, brightness: float) -> np.ndarray:
        return np.full((32, 32, 3), int(128 + 100 * brightness), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    gym.register("Blink-v0", entry_point=f"{__name__}:BlinkEnv")  # a class could not be recorded
    yield
    del gym.registry["Blink-v0"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder: its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLDFLOW_DEBUG", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        status = cli.main(words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def made(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `data` and a run `world`, both made by commands."""
    folder = tmp_path_factory.mktemp("made")
    data, world = str(folder / "data"), str(folder / "world")
    assert cli.main(["collect", "Blink-v0", "--out", data, "--episodes", "6", "--policy", "smooth"]) == 0
    steps = ["--steps", "2", "--codec-steps", "2", "--batch", "2", "--length", "6"]
    assert cli.main(["train", data, "--out", world, "--preset", "tiny", *steps]) == 0
    return folder


def failure(result: tuple[int, str, str], status: int = 1) -> str:
    """The one line that a failed command left on stderr, progress bars aside."""
    found, out, err = result
    assert (found, out) == (status, "")
    assert "Traceback" not in err
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("worldflow: ")]
    assert len(lines) == 1
    assert err.endswith(lines[0] + "\n")
    return lines[0]


def test_collecting_says_what_was_recorded(run: Run) -> None:
    words = ("collect", "Blink-v0", "--out", "data", "--episodes", "2", "--seed", "3", "--random-fraction", "0.5")
    status, out, _ = run(*words, "--max-steps", "5", "--json")
    assert status == 0
    assert json.loads(out) == {
        "dataset": "data",
        "episodes": 2,
        "transitions": 10,
        "frame_shape": [32, 32, 3],
        "action_shape": [2],
    }
    recordings = Dataset("data").metadata["worldflow"]["recordings"]
    assert (recordings[0]["seed"], recordings[0]["random_fraction"]) == (3, 0.5)
    assert "--append" in failure(run(*words))
    assert run(*words, "--append")[0] == 0
    assert len(Dataset("data")) == 4
    assert run(*words, "--overwrite")[0] == 0
    assert Dataset("data").lengths.tolist() == [12, 12]


def test_collecting_sizes_repeats_and_disturbs_the_tasks(run: Run) -> None:
    words = ("collect", "worldflow/Reacher-v0", "--episodes", "1", "--size", "16")
    assert run(*words, "--out", "plain", "--action-repeat", "4")[0] == 0
    assert run(*words, "--out", "noisy", "--anomaly", "sensor_noise", "--strength", "9")[0] == 0
    plain, noisy = Dataset("plain"), Dataset("noisy")
    assert plain.spec.frame_shape == (16, 16, 3)
    assert plain.spec.env_spec is not None
    assert noisy.spec.env_spec is not None
    assert json.loads(plain.spec.env_spec)["kwargs"]["action_repeat"] == 4
    assert json.loads(noisy.spec.env_spec)["additional_wrappers"][-1]["kwargs"]["strength"] == 9
    assert noisy.episode(0).infos["anomaly"].tolist() == [False] + [True] * 50


def test_shapes_are_collected_in_their_own_size_with_their_captions(run: Run) -> None:
    words = ("collect", "worldflow/MovingShapes-v0", "--episodes", "1")
    assert run(*words, "--out", "own")[0] == run(*words, "--out", "large", "--size", "64")[0] == 0
    assert Dataset("own").spec.frame_shape == (32, 32, 3)
    assert Dataset("large").spec.frame_shape == (64, 64, 3)
    caption = Dataset("own").caption(0)
    assert caption is not None and caption == Dataset("large").caption(0)
    assert "action_repeat" in failure(run(*words, "--out", "none", "--action-repeat", "2"))


def test_training_and_scoring(run: Run, made: Path) -> None:
    assert {"world.json", "world.safetensors", "contexts.npz"} <= {p.name for p in (made / "world").iterdir()}
    status, out, _ = run("score", str(made / "world"), str(made / "data"), "--out", "s.csv", "--json", "--draws", "2")
    assert status == 0
    result = json.loads(out)
    assert (result["episodes"], result["transitions"], result["scores"]) == (6, 72, "s.csv")
    with Path("s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 72
    scores = worldflow.score(made / "world", made / "data", num_draws=2)
    np.testing.assert_array_equal([float(r["log_prob"]) for r in rows], np.concatenate([s.log_prob for s in scores]))
    assert result["mean"]["frame"] == pytest.approx(np.mean([s.frame for s in scores]))
    assert result["by_episode"][5]["reward"] == pytest.approx(scores[5].reward.mean())

    status, out, _ = run("score", str(made / "world"), str(made / "data"))
    assert status == 0
    assert [p.name for p in Path().iterdir()] == ["s.csv"]
    assert f"{result['mean']['above_floor']:.2f}"[:3] in out  # another draw of the noise: about the same


def test_scoring_writes_json_pictures_and_rings(run: Run, made: Path) -> None:
    words = ("score", str(made / "world"), str(made / "data"))
    rates = ("--false-alarm-rate", "0.2", "--episode-false-alarm-rate", "0.3")
    status, out, _ = run(*words, "--out", "s.json", "--normal", str(made / "data"), "--detector", "d.npz", *rates)
    assert status == 0 and "ringing_episodes" in out
    stored = json.loads(Path("s.json").read_text())
    assert len(stored["episodes"]) == 6 and len(stored["episodes"][0]["context_ratio"]) == 12
    rang = [bool(e["alarms"]["episode"] or sum(e["alarms"]["drift_rings"])) for e in stored["episodes"]]
    assert all(len(e["alarms"]["rings"]) == 12 for e in stored["episodes"])
    assert f"ringing_episodes: {[i for i, rings in enumerate(rang) if rings]}" in " ".join(out.split())

    options = ("--detector", "d.npz", "--fail-on-alarm", "--video", "v", "--heat", "h.png", "--json")
    status, out, _ = run(*words, *options, "--seed", "3")
    result = json.loads(out)
    assert status == (3 if result["ringing_episodes"] else 0)
    assert [Path(p).is_file() for p in (*result["videos"], result["heat"])] == [True] * 7

    detector = worldflow.Detector.load("d.npz")
    replace(detector, episode_false_alarm_rate=0.999).save("all.npz")  # rings whatever happens
    assert run(*words, "--detector", "all.npz", "--fail-on-alarm")[0] == 3
    assert run(*words, "--detector", "all.npz")[0] == 0
    status, out, _ = run(*words, "--detector", "all.npz", "--infos", "copy", "--json")
    assert status == 0 and json.loads(out)["infos"] == "copy"
    assert Dataset("copy")[5].infos["score"]["rings"].shape == (13,)
    assert "--infos must name a new folder" in failure(run(*words, "--infos", "copy"))
    refused = run(*words, "--detector", "all.npz", "--without-pixels")
    assert "leave --without-pixels out" in failure(refused)
    assert "--normal DATASET or --detector" in failure(run(*words, "--fail-on-alarm"))


def test_evaluating_on_anomalies_takes_its_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    class Nothing:
        def to_plain(self) -> dict[str, Any]:
            return {"rows": {}}

    def gather(run: str, dataset: str, **options: Any) -> Nothing:
        given.update(run=run, dataset=dataset, **options)
        return Nothing()

    monkeypatch.setattr("worldflow.anomaly_evidence.gather", gather)
    words = ("evaluate", "r", "d", "--out", "o", "--anomalies", "--episodes", "3", "--normal", "20", "--seed", "2")
    status, out, _ = run(*words, "--baseline-minutes", "0", "--json")
    assert status == 0
    files = {"report": str(Path("o") / "anomalies.html"), "numbers": str(Path("o") / "anomalies.json")}
    assert json.loads(out) == {**files, "rows": {}}
    config = AnomalyConfig(episodes=3, normal=20, seed=2, baseline_minutes=0)
    assert given == {"run": "r", "dataset": "d", "out": "o", "config": config}


def test_training_takes_the_recipes_options(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(
        cli, "train", lambda dataset, **options: given.update(options) or worldflow.load(made / "world")
    )
    shutil.copytree(made / "world", "r")
    words = ("--out", "r", "--minutes", "5", "--preset", "large", "--length", "9", "--resume", "--json")
    status, out, _ = run("train", "d", *words)
    assert status == 0
    expected = worldflow.TrainConfig(minutes=5, preset="large", length=9)
    assert given == {"out": "r", "resume": True, "config": expected}
    assert {"run", "parameters", "held_out/above_floor"} <= set(json.loads(out))


def test_the_demo_takes_its_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(cli, "demo", given.append)
    assert run("demo", "--out", "here", "--minutes", "0.5") == (0, "", "")
    assert (given[0].out, given[0].minutes) == ("here", 0.5)


def test_help_and_version(run: Run) -> None:
    assert run("--version") == (0, f"worldflow {worldflow.__version__}\n", "")
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert run() == (2, "", out)


def leaves() -> dict[str, type]:
    """All commands by the words that call them, those of groups, too."""
    found: dict[str, type] = {}
    for name, kind in cli.COMMANDS.items():
        found |= {f"{name} {member}": k for member, k in kind.items()} if isinstance(kind, dict) else {name: kind}
    return found


@pytest.mark.parametrize("name", list(leaves()))
def test_help_explains_every_option(name: str, run: Run) -> None:
    status, out, err = run(*name.split(), "--help")
    assert (status, err) == (0, "")
    config = {
        "train": worldflow.TrainConfig,
        "evaluate": worldflow.EvaluateConfig,
        "dream": DreamConfig,
        "compare": CompareConfig,
        "improve": ImproveConfig,
        "demo": cli.DemoConfig,
        "images train": FitConfig,
        "bench states": worldflow.TrainConfig,
        "bench recipe": worldflow.TrainConfig,
    }.get(name)
    names = {f.name for kind in (leaves()[name], config) if kind for f in fields(kind)} - {"config"}
    for part, kind in (("train", worldflow.TrainConfig), ("dream", DreamConfig)):
        if name == "improve":
            names = names - {part} | {f"{part}.{f.name}" for f in fields(kind)} - {"dream.settings"}
    explained = dict(re.findall(r"\n\W+--(\w\S*) (?:[A-Z]+ |{\S+ |\[.*?\]\] )?\s*(\w[^(]*)", out))
    positional = {
        "collect": {"env_id"},
        "import": {"source"},
        "train": {"dataset"},
        "score": {"run", "dataset"},
        "plan": {"run"},
        "dream": {"run"},
        "compare": {"run"},
        "improve": {"env_id"},
        "ship": {"name"},
        "evaluate": {"run", "dataset"},
        "demo": set(),
        "bench density": set(),
        "bench step": {"run"},
        "bench sample": {"run"},
        "bench score": {"run"},
        "bench train": {"run"},
        "bench data": {"dataset"},
        "bench drift": {"run", "dataset"},
        "bench denoise": {"run", "dataset"},
        "bench states": {"dataset"},
        "bench recipe": {"dataset"},
        "images train": {"data"},
        "images sample": {"model"},
        "generate": {"run"},
    }[name]
    asked = {re.sub(r"\bno-", "", option) for option in explained}  # what is on unless told otherwise
    assert asked == {n.replace("_", "-") for n in names - positional}
    assert min(len(text.split()) for text in explained.values()) >= 3
    assert all(re.search(rf"{word.upper()} +\w+ \w+ \w+", out) for word in positional)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("trian data", "unknown command 'trian'; did you mean 'train'?"),
        (
            "zzz",
            "the commands are collect, import, train, generate, evaluate, score, plan, dream, compare, improve, ship",
        ),
    ],
)
def test_unknown_commands(words: str, part: str, run: Run) -> None:
    assert part in failure(run(*words.split()), status=2)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("train data --out r --minuts 5", "--minutes"),
        ("train data", "--out"),
        ("train data --out r --minutes 0", "minutes must be above 0"),
        ("train data --out r --preset big", "'tiny'"),
        ("score r", "DATASET"),
        ("collect Blink-v0 --out d --episodes two", "--episodes"),
    ],
)
def test_wrong_options_are_named(words: str, part: str, run: Run) -> None:
    status, out, err = run(*words.split())
    assert (status, out) == (2, "")
    assert part in err
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("collect worldflow/Recher-v0 --out d", "did you mean 'worldflow/Reacher-v0'"),
        ("collect nomodule:X-v0 --out d", "no module 'nomodule'"),
        ("collect Blink-v0 --out d --policy rndom", "did you mean 'random'?"),
        ("collect Blink-v0 --out d --policy nomodule:f", "no module 'nomodule'"),
        ("collect Blink-v0 --out d --episodes 0", "episodes must be at least 1"),
        ("collect Blink-v0 --out d --append --overwrite", "not both"),
        ("collect Blink-v0 --out d --strength 2", "--strength needs --anomaly"),
        ("collect Blink-v0 --out d --action-repeat 2", "--action-repeat"),
        ("collect Blink-v0 --out d --env-args [1]", "--env-args must be a JSON object"),
        ('collect Blink-v0 --out d --env-args {"no":1}', "does not take the arguments"),
        ("collect Blink-v0 --out d --anomaly teleprt", "teleport"),
        ("collect Blink-v0 --out d --anomaly teleport", "MuJoCo"),
        ("collect worldflow/Learned-v0 --out d", "world"),
        ("train none --out r", "none does not exist"),
        ("ship Recher", "did you mean 'Reacher'?"),
        ("train none --out r --resume", "none does not exist"),
        ("score none none", "none does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words: str, part: str, run: Run) -> None:
    assert part in failure(run(*words.split()))
    assert list(Path().iterdir()) == []


def test_damaged_files_are_named(run: Run, made: Path) -> None:
    data, world = str(made / "data"), str(made / "world")
    assert "no world at" in failure(run("score", data, data))
    assert "already holds a run" in failure(run("train", data, "--out", world))
    shutil.copytree(world, "world")
    for name in ("world.safetensors", "contexts.npz", "world.json"):
        whole = Path("world", name).read_bytes()
        Path("world", name).write_bytes(whole[: len(whole) // 2])
        assert name in failure(run("score", "world", data, "--out", "s.csv"))
        Path("world", name).write_bytes(whole)
    assert run("score", "world", data)[0] == 0

    shutil.copytree(data, "data")
    with h5py.File("data/data/main_data.hdf5", "r+") as file:
        file["episode_2/actions"][3, 0] = np.nan  # pyright: ignore[reportIndexIssue]
    assert "actions must be finite" in failure(run("score", world, "data", "--out", "s.csv"))
    assert "actions must be finite" in failure(run("train", "data", "--out", "r", "--preset", "tiny"))
    whole = Path("data/data/main_data.hdf5").read_bytes()
    Path("data/data/main_data.hdf5").write_bytes(whole[: len(whole) // 2])
    assert "copied in part" in failure(run("score", world, "data", "--out", "s.csv"))
    assert not Path("s.csv").exists()
    assert not Path("r", "world.json").exists()


def test_data_of_another_environment_is_refused(run: Run, made: Path) -> None:
    words = ("collect", "Blink-v0", "--out", "other", "--episodes", "2", "--env-args", '{"action_dim": 3}')
    assert run(*words)[0] == 0
    message = failure(run("score", str(made / "world"), "other", "--out", "s.csv"))
    assert "actions: expected shape (2,), got (3,)" in message
    assert not Path("s.csv").exists()


def test_a_full_disk_leaves_no_half_table(run: Run, made: Path) -> None:
    words = ("score", str(made / "world"), str(made / "data"), "--out", "s.csv")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        message = failure(run(*words))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write s.csv" in message
    assert "free some space" in message
    assert list(Path().iterdir()) == []
    Path("folder").mkdir()
    assert "got the folder folder" in failure(run(*words[:-1], "folder"))
    Path("file").touch()
    assert "file" in failure(run(*words[:-1], "file/s.csv"))


def test_an_interrupt_says_what_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupted)
    assert "kept" in failure(run("train", "data", "--out", "r"), status=130)


def test_an_error_nobody_expected_is_one_line_unless_it_is_debugged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(cli, "train", broken)
    assert "RuntimeError: two lines" in failure(run("train", "data", "--out", "r"))
    with pytest.raises(RuntimeError):
        run("train", "data", "--out", "r", "--debug")
    monkeypatch.setenv("WORLDFLOW_DEBUG", "1")
    with pytest.raises(RuntimeError):
        run("train", "data", "--out", "r")


def test_a_warning_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "demo", lambda config: warnings.warn("look\nhere", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run("demo") == (0, "", "worldflow: warning: look here\n")


def test_json_is_alone_on_stdout(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = score_command.score

    def chatty(*arguments: Any, **options: Any) -> Any:
        print("a library talks")
        return score(*arguments, **options)

    monkeypatch.setattr(score_command, "score", chatty)
    _, out, err = run("score", str(made / "world"), str(made / "data"), "--json")
    assert json.loads(out)["episodes"] == 6
    assert "a library talks" in err


def test_the_program_may_be_piped_into_one_that_stops_reading() -> None:
    code = "import sys; from worldflow.cli import main; sys.exit(main(['train', '--help']))"
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_evaluating_prints_tables_or_json_and_writes_both_files(made: Path, run: Run, tmp_path: Path) -> None:
    words = ("evaluate", str(made / "world"), str(made / "data"), "--out", str(tmp_path / "fidelity"))
    options = ("--clips", "2", "--samples", "2", "--long", "0", "--baseline-minutes", "0", "--device", "cpu")
    status, out, _ = run(*words, *options)
    assert status == 0
    assert "Peak signal-to-noise ratio (dB)" in out and "left out:" in out and "deterministic baseline: asked" in out
    assert {p.name for p in (tmp_path / "fidelity").iterdir()} == {"report.html", "fidelity.json"}
    status, out, _ = run(*words, *options, "--json")
    record = json.loads(out)
    assert status == 0 and record["protocol"]["samples"] == 2 and record["report"].endswith("report.html")
    (tmp_path / "file").touch()
    words = (*words[:-1], str(tmp_path / "file"))
    assert "--out must name a folder" in failure(run(*words))
