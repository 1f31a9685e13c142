"""Training by several processes: the same step in all of them, one that writes and decides, and torchrun to start."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import write_dataset
from torch import Tensor, nn

import worldflow as wf
from worldflow.fit import CODEC, FitState, fit
from worldflow.log import NoLog
from worldflow.team import ALONE, Team

SMALL: dict[str, Any] = {"preset": "tiny", "codec_steps": 2, "length": 4, "batch": 4, "eval_clips": 2, "device": "cpu"}


class Scaled(nn.Module):
    """A model whose arithmetic does not depend on how a batch is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum(-1)


def fitted(x: Tensor, y: Tensor, team: Team, *, steps: int = 7) -> Tensor:
    module = Scaled()
    fit(
        module,
        lambda: ((module(x) - y).square().mean(), {"codec/psnr": torch.zeros(())}),
        NoLog(),
        steps=steps,
        minutes=None,
        **common(team),
    )
    return module.weight.detach()


def steps_until(minutes: float, pace: float, team: Team) -> tuple[int, list[int]]:
    """How many steps are taken, and at which it is saved, by a clock that goes so many seconds a look."""
    module, ticks, saved = Scaled(), itertools.count(), list[int]()
    x = torch.ones(2, 3)

    def keep(state: FitState) -> None:
        saved.append(state.step)

    rest = common(team) | {"save": keep, "save_every": minutes / 4}
    loss = lambda: (module(x).square().mean(), {"codec/psnr": torch.zeros(())})  # noqa: E731
    fit(module, loss, NoLog(), steps=1, minutes=minutes, clock=lambda: pace * next(ticks), **rest)
    return saved[-1], saved


def common(team: Team) -> dict[str, Any]:
    return {
        "stage": CODEC,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "items": 1,
        "device": torch.device("cpu"),
        "start": None,
        "look": None,
        "look_every": 1.0,
        "save": lambda state: None,
        "save_every": 1.0,
        "progress": False,
        "team": team,
    }


def work(folder: Path) -> None:
    """One of the processes; what it found goes to a file."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    team = Team.of(torch.device("cpu"))
    x, y = torch.randn(2, size, 4, 3, generator=torch.Generator().manual_seed(0))
    module = nn.Linear(3, 2)
    nn.init.constant_(module.weight, float(rank))
    team.share(module)
    found: dict[str, Any] = {
        "rank": team.rank,
        "size": team.size,
        "fitted": fitted(x[rank], y[rank, :, 0], team).tolist(),
        "steps": steps_until(1.0, 1.0 + 5.0 * rank, team),
        "shared": module.weight.mean().item(),
        "told": team.told(7.0 + rank),
    }
    world = wf.train(folder / "data", out=folder / "run", steps=3, progress=False, **SMALL)
    found["world"] = float(sum(v.double().abs().sum() for v in world.state_dict().values()))
    try:
        wf.train(folder / "data", out=folder / "run", steps=3, progress=False, **SMALL)
    except FileExistsError as error:
        found["refused"] = str(error)
    again = wf.train(folder / "data", out=folder / "run", steps=5, resume=True, progress=False, **SMALL)
    found["resumed"] = float(sum(v.double().abs().sum() for v in again.state_dict().values()))
    (folder / f"{rank}.json").write_text(json.dumps(found))


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """Two processes."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("team")
    write_dataset(path / "data", lengths=[7, 8, 6, 7, 8])
    ended = torchrun(__file__, str(path))
    assert ended.returncode == 0, ended.stderr
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_take_the_steps_of_one_with_both_batches(found: list[dict[str, Any]]) -> None:
    x, y = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    whole = fitted(x.flatten(0, 1), y[..., 0].flatten(), ALONE)
    half = fitted(x[0], y[0, :, 0], ALONE)
    for rank in range(2):
        assert (found[rank]["rank"], found[rank]["size"]) == (rank, 2)
        torch.testing.assert_close(torch.tensor(found[rank]["fitted"]), whole, rtol=0, atol=1e-6)
    assert (whole - half).abs().max() > 1e-3  # so the other's gradients did matter


def test_all_end_and_save_when_the_leaders_clock_says_so(found: list[dict[str, Any]]) -> None:
    alone = steps_until(1.0, 1.0, ALONE)
    assert found[0]["steps"] == found[1]["steps"] == [alone[0], alone[1]]
    assert len(alone[1]) >= 4 and alone[0] > 10


def test_what_the_leader_has_is_what_all_have(found: list[dict[str, Any]]) -> None:
    assert [each["shared"] for each in found] == [0.0, 0.0]
    assert [each["told"] for each in found] == [7.0, 7.0]
    assert found[0]["world"] == found[1]["world"]
    assert found[0]["resumed"] == found[1]["resumed"] != found[0]["world"]


def test_one_of_them_writes_and_all_refuse_a_folder_that_holds_a_run(found: list[dict[str, Any]], folder: Path) -> None:
    assert all("already holds a run" in each["refused"] for each in found)
    records = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "flow/above_floor" in r] == [0]
    assert [r["step"] for r in records if "held_out/above_floor" in r] == [3, 5]
    assert not (folder / "run" / "latents.npy").exists()
    world = wf.load(folder / "run")
    assert float(sum(v.double().abs().sum() for v in world.state_dict().values())) == found[0]["resumed"]


def test_each_draws_for_itself_and_the_leader_as_if_alone() -> None:
    cpu = torch.device("cpu")
    teams = [Team(rank=rank, size=3, device=cpu) for rank in range(3)]
    assert teams[0].seed(5) == teams[0].seed(5, step=9) == ALONE.seed(5) == 5
    assert len({team.seed(5, step=step) for team in teams for step in (0, 9)}) == 5


def test_a_gpu_for_each_process_or_a_word_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Team.of(torch.device("cpu")).size == 1  # somebody else's variable: no rank goes with it
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"torchrun started 4 processes here for 2 GPUs; --nproc-per-node 2"):
        Team.of(torch.device("cuda"))


def test_torchrun_starts_the_command(folder: Path, tmp_path: Path) -> None:
    words = ["--preset", "tiny", "--codec-steps", "2", "--steps", "2", "--length", "4", "--batch", "4"]
    command = ["train", str(folder / "data"), "--out", str(tmp_path / "run"), "--device", "cpu", *words]
    ended = torchrun("-m", "worldflow", *command)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("parameters:") == 1
    assert wf.load(tmp_path / "run").config.flow.deep_width == 128


if __name__ == "__main__":
    work(Path(sys.argv[1]))
