"""The benchmark searches, trains, measures and tells; a budget of moments shows that it does."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from worldflow import bench, cli
from worldflow.bench import RECIPES, DensityBench, Recipe, digits
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
def test_spaces_of_the_others_are_exact(space: bench.Space) -> None:
    splits = digits()
    theirs = bench._Theirs(Recipe(flow="NICE", space=space), splits.train, seed=0)
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
    words = "bench density --minutes 0.02 --search-minutes 0.01 --draws 2 --flows TarFlow MAF NICE --out"
    weights = tmp_path / "ours.safetensors"
    assert cli.main([*words.split(), str(out), "--weights", str(weights)]) == 0
    printed = capsys.readouterr()
    assert "search" in printed.err
    assert "density" in printed.err
    told = json.loads(out.read_text())
    assert {row["recipe"]["flow"] for row in told["table"]} == set(few)
    assert len(told["search"]) == 4
    assert all(row["bits"] is None for row in told["search"])  # which never sees the test
    means = [row["bits"]["mean"] for row in told["table"]]
    assert means == sorted(means)
    for row in told["table"]:
        # Nothing is learned in a second; every pixel's own distribution takes 2.4 bits, no knowledge log2(17).
        assert 2 < row["bits"]["mean"] < 2 * math.log2(17)
        assert row["bits"]["images"] == 359
        assert f"{row['bits']['mean']:.4f} +- {row['bits']['standard_error']:.4f}" in printed.out
        assert 0 < row["best_seconds"] <= row["seconds"]
    assert torch.__version__ in printed.out
    ours = next(row for row in told["table"] if row["recipe"]["flow"] == "TarFlow")
    again = load_images(weights).bits(digits().test.images, generator=torch.Generator().manual_seed(2), draws=2)
    assert again.mean == pytest.approx(ours["bits"]["mean"], rel=1e-6)


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
            bench._Theirs(Recipe(flow="NICE"), SPLITS.train, seed=0)


SPLITS = digits()


def test_all_recipes_can_be_made() -> None:
    for recipes in RECIPES.values():
        for recipe in recipes:
            if recipe.flow != "TarFlow":
                bench._Theirs(recipe, SPLITS.train, seed=0)
            assert recipe.flow in str(recipe)
