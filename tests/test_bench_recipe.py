"""Ablations of the recipe train what they say, once, and share what they may share."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import write_dataset

from worldflow.bench_recipe import CHOICES, as_table, compare_choices, recipe_figure
from worldflow.checkpoint import load
from worldflow.data import Dataset
from worldflow.recipes import TrainConfig


def _config() -> TrainConfig:
    return TrainConfig(preset="tiny", minutes=0.1, batch=2, length=4, codec_batch=6, eval_every=9, save_every=9)


def _seconds(tick: float = 0.05) -> itertools.count[float]:
    return itertools.count(0.0, tick)


def test_rows_differ_by_one_choice_and_are_made_once(tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path / "set", lengths=[14, 15, 16, 17], size=16))
    options = {"choices": ("forgetful", "loud"), "config": _config(), "seeds": (3,), "clips": 2, "horizon": 2}
    found = compare_choices(dataset, tmp_path / "out", samples=2, progress=False, clock=_seconds().__next__, **options)
    assert list(found) == ["recipe", "forgetful", "loud"] and all(list(runs) == [3] for runs in found.values())
    worlds = {name: load(tmp_path / "out" / name / "3") for name in found}
    assert {name: world.config.flow.memory for name, world in worlds.items()} == {
        "recipe": 64,
        "forgetful": 0,
        "loud": 64,
    }
    assert worlds["loud"].config.codec.noise_std == 0.15

    def codec(name: str) -> torch.Tensor:
        return torch.cat([p.flatten() for p in worlds[name].codec.parameters()])

    assert torch.equal(codec("forgetful"), codec("recipe")) and not torch.equal(codec("loud"), codec("recipe"))

    def never() -> float:
        raise AssertionError("nothing is trained again")

    again = compare_choices(dataset, tmp_path / "out", samples=2, progress=False, clock=never, **options)
    assert again == found
    begun = tmp_path / "out" / "begun.json"
    before = json.loads(begun.read_text())
    del before["config"]["window"]  # as an earlier version, which had no such option, left it
    begun.write_text(json.dumps(before))
    assert compare_choices(dataset, tmp_path / "out", samples=2, progress=False, clock=never, **options) == found
    other = {**options, "config": TrainConfig(preset="tiny", minutes=0.2)}
    with pytest.raises(ValueError, match="holds runs of another recipe or data set; name another folder"):
        compare_choices(dataset, tmp_path / "out", progress=False, **other)


def test_seeds_are_summed_up_and_drawn() -> None:
    found = {"recipe": {0: {"a": 1.0, "b": 5.0}, 1: {"a": 2.0, "b": 6.0}}, "loud": {0: {"a": 3.0, "b": 7.0}}}
    assert as_table(found).splitlines() == [
        "| | a | b |",
        "|---|---|---|",
        "| the recipe | 1.50 (1.00 to 2.00) | 5.50 (5.00 to 6.00) |",
        "| three times the noise | 3.00 | 7.00 |",
    ]
    figure = recipe_figure(found)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [CHOICES[name].about for name in found]
    assert sorted(np.concatenate([line.get_xdata() for line in figure.axes[0].lines[:2]])) == [1.0, 1.5, 2.0]


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path / "set", lengths=[4, 5], size=16))
    with pytest.raises(ValueError, match=r"no choice 'forgetfull'.*forgetful"):
        compare_choices(dataset, tmp_path / "out", choices=("forgetfull",), config=_config())
    with pytest.raises(ValueError, match="equal time needs minutes"):
        compare_choices(dataset, tmp_path / "out", choices=("loud",), config=TrainConfig())
    assert not (tmp_path / "out").exists()
