"""The benchmark searches, trains, measures and tells; a budget of moments shows that it does."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from worldflow import bench, bench_flows, cli
from worldflow.bench import DensityBench, as_table, spent
from worldflow.bench_flows import RECIPES, Recipe, Theirs, digits
from worldflow.density import NeverFiniteError
from worldflow.images import load_images


def test_splits_are_apart_and_follow_from_the_seed() -> None:
    splits = digits(3)
    sizes = (len(splits.train), len(splits.validation), len(splits.test))
    assert sizes == (1797 - 359 - 179, 179, 359)
    images = torch.cat([part.images for part in (splits.train, splits.validation, splits.test)]).flatten(1)
    every = torch.cat([part.images for part in (digits().train, digits().validation, digits().test)]).flatten(1)
    assert sorted(map(tuple, images.tolist())) == sorted(map(tuple, every.tolist()))
    assert (images.min(), images.max()) == (0, 16)
    assert torch.equal(digits(3).test.images, splits.test.images)
    assert not torch.equal(digits(4).test.images, splits.test.images)


@pytest.mark.parametrize("space", ["plain", "logit", "marginals"])
def test_spaces_of_the_others_are_exact(space: bench_flows.Space) -> None:
    splits = digits()
    theirs = Theirs(Recipe(flow="NICE", space=space), splits.train, seed=0)
    x = torch.rand(1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: theirs._mapped(v)[0], x)
    assert isinstance(jacobian, torch.Tensor)
    # Pixel by pixel: the determinant is the diagonal's product; float64.
    log_det = jacobian.view(64, 64).diag().log().sum()
    torch.testing.assert_close(theirs._mapped(x)[1][0], log_det, rtol=1e-9, atol=1e-9)


def test_the_command_does_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"transforms": 1, "hidden_features": (8,)}
    few = {
        "TarFlow": [Recipe(flow="TarFlow", options={"layers": (1, 1), "width": 32}, is_marginal=True)],
        "MAF": [Recipe(flow="MAF", options=small, is_marginal=True)],
        "NICE": [Recipe(flow="NICE", options=small, space=s) for s in ("plain", "marginals")],
    }
    monkeypatch.setattr(bench, "RECIPES", few)
    out = tmp_path / "density.json"
    words = "bench density --minutes 0.01 --seeds 2 --search-minutes 0.005 --draws 2 --flows TarFlow MAF NICE --out"
    weights = tmp_path / "ours.safetensors"
    assert cli.main([*words.split(), str(out), "--weights", str(weights)]) == 0
    printed = capsys.readouterr()
    assert "search" in printed.err
    assert "density" in printed.err
    told = json.loads(out.read_text())
    assert {row["recipe"]["flow"] for row in told["table"]} == set(few)
    assert len(told["search"]) == 2  # who has one recipe has nothing to search
    assert all(found["bits"] is None for found in told["search"])  # which never sees the test
    means = [row["mean"] for row in told["table"]]
    assert means == sorted(means)
    for row in told["table"]:
        # Nothing is learned in half a second; every pixel's own distribution takes 2.4 bits, no knowledge log2(17).
        assert 2 < row["mean"] < 2 * math.log2(17)
        by_seed = [found["bits"]["mean"] for found in row["results"]]
        assert [found["seed"] for found in row["results"]] == [0, 1]
        assert row["mean"] == pytest.approx(sum(by_seed) / 2)
        assert row["spread"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / math.sqrt(2))
        assert f"{row['mean']:.4f} +- {row['spread']:.4f}" in printed.out
        for found in row["results"]:
            assert found["bits"]["images"] == 359
            assert 0.99 * 60 * 0.01 < found["seconds"] < 60 * 0.01 + 10
            assert found["seconds"] >= sum(trial["seconds"] for trial in found["trials"])
    assert torch.__version__ in printed.out
    ours = next(row for row in told["table"] if row["recipe"]["flow"] == "TarFlow")
    again = load_images(weights).bits(digits().test.images, generator=torch.Generator().manual_seed(2), draws=2)
    assert again.mean == pytest.approx(ours["results"][0]["bits"]["mean"], rel=1e-6)


class Ticks:
    """A clock that only a fit moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_minutes_are_spent_whatever_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, given = Ticks(), []
    ends = iter([3.0, 30.0, 12.0, 60.0, 1.0, *[1e9] * 50])  # seconds after which validation gains no more
    bits = iter([2.0, 1.5, None, 1.7, 1.6, *[1.9] * 50])

    def fitted(
        recipe: Recipe, *_: object, minutes: float, rate: float, seed: int, **__: object
    ) -> bench._Fitted | None:
        given.append((minutes, rate, seed))
        clock.now += min(60 * minutes, next(ends))
        value = next(bits)
        if value is None:
            return None
        module = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(module.bias, value)
        nats = (math.log2(17) - value) * 64 * math.log(2)
        return bench._Fitted(module=module, log_prob=lambda x: torch.full((len(x),), nats))

    monkeypatch.setattr(bench, "_fitted", fitted)
    recipe = Recipe(flow="NICE", learning_rate=1e-3, minutes=0.5)
    result, best = spent(recipe, SPLITS, DensityBench(), minutes=4.0, seed=7, clock=clock)
    assert result.seconds == clock.now == pytest.approx(240)
    assert result.seconds == pytest.approx(sum(trial.seconds for trial in result.trials))
    # 3 + 30 + 12 seconds in the first round, then twice as long: 60 and 1, then all there is.
    expected = [(0.5, 1.0), (0.5, 0.5), (0.5, 2.0), (1.0, 1.0), (1.0, 0.5), (1.0, 2.0), (74 / 60, 1.0)]
    assert [minutes for minutes, _, _ in given] == pytest.approx([minutes for minutes, _ in expected])
    assert [rate for _, rate, _ in given] == pytest.approx([1e-3 * share for _, share in expected])
    assert len({seed for _, _, seed in given}) == len(given)
    assert result.validation_bits == pytest.approx(1.5, abs=1e-5)
    assert float(best.module.get_parameter("bias").detach()) == 1.5
    assert [trial.validation_bits is None for trial in result.trials] == [number == 2 for number in range(7)]


def test_a_recipe_that_is_never_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise NeverFiniteError

    monkeypatch.setattr(Theirs, "fit", never)
    clock = iter(range(1000)).__next__
    with pytest.raises(ValueError, match=r"NICE\(\) on marginals.* was never finite on validation images, in \d+ fits"):
        spent(Recipe(flow="NICE"), SPLITS, DensityBench(), minutes=0.2, seed=0, clock=clock)


def test_the_search_chooses_recipes_and_finalists(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        "TarFlow": [Recipe(flow="TarFlow")],
        "NSF": [Recipe(flow="NSF", learning_rate=rate) for rate in (1.0, 2.0, 3.0)],
        "NICE": [Recipe(flow="NICE", learning_rate=rate) for rate in (1.0, 2.0)],
        "BPF": [Recipe(flow="BPF", learning_rate=rate) for rate in (1.0, 2.0)],
        "SOSPF": [Recipe(flow="SOSPF", learning_rate=rate) for rate in (1.0, 2.0)],
    }
    bits = {("NSF", 1.0): 9.0, ("NSF", 2.0): 8.0, ("NICE", 1.0): 3.0, ("NICE", 2.0): 4.0, ("BPF", 2.0): 5.0}

    def found(recipe: Recipe, *_: object, seed: int, **__: object) -> tuple[bench.Result, None]:
        if (key := (recipe.flow, recipe.learning_rate)) not in bits:
            raise NeverFiniteError
        result = bench.Result(
            recipe=recipe, seed=seed, validation_bits=bits[key], bits=None, parameters=1, seconds=1.0, trials=()
        )
        return result, None

    monkeypatch.setattr(bench, "RECIPES", few)
    monkeypatch.setattr(bench, "spent", found)
    chosen, search = bench._searched(DensityBench(flows=tuple(few), finalists=1, quiet=True))
    assert {family: recipe.learning_rate for family, recipe in chosen.items()} == {
        "TarFlow": 1e-3,  # which has nothing to search
        "NSF": 2.0,  # which always takes part
        "NICE": 1.0,
    }
    assert len(search) == len(bits)


def test_one_seed_has_no_spread() -> None:
    result = bench.Result(
        recipe=Recipe(flow="NICE"),
        seed=0,
        validation_bits=2.0,
        bits=bench.Bits(mean=2.5, standard_error=0.1, tighter=2.4, images=9, draws=2),
        parameters=3,
        seconds=90.0,
        trials=(),
    )
    row = bench._row([result])
    assert row.spread is None
    line = as_table([row]).splitlines()[1]
    assert "+-" not in line
    assert line.split()[:5] == ["NICE", "2.5000", "2.4000", "3", "1.50"]


def test_the_group_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench"]) == 2
    assert "density" in capsys.readouterr().err
    assert cli.main(["bench", "--help"]) == 0
    assert "Bits per dimension" in capsys.readouterr().out
    assert cli.main(["bench", "densty"]) == 2
    assert "unknown command 'bench densty'; did you mean 'density'?" in capsys.readouterr().err
    assert cli.main(["bench", "density", "--help"]) == 0
    assert "--search-minutes" in capsys.readouterr().out


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unknown flow 'NFS'; did you mean 'NSF'"):
        DensityBench(flows=("NFS",))
    with pytest.raises(ValueError, match="minutes must be above 0"):
        DensityBench(minutes=0)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        DensityBench(draws=0)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        DensityBench(seeds=0)
    assert cli.main(["bench", "density", "--out", str(tmp_path)]) == 1
    assert "--out must name a file" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["sklearn", "zuko"])
def test_what_is_not_installed_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (module, f"{module}.datasets", f"{module}.flows"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'worldflow\[bench\]'"):
        if module == "sklearn":
            digits()
        else:
            Theirs(Recipe(flow="NICE"), SPLITS.train, seed=0)


SPLITS = digits()


def test_all_recipes_can_be_made() -> None:
    for recipes in RECIPES.values():
        for recipe in recipes:
            if recipe.flow != "TarFlow":
                Theirs(recipe, SPLITS.train, seed=0)
            assert recipe.flow in str(recipe)
