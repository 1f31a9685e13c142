"""Ways of taking noise off are compared on the same codes, through both decoders."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_world, write_dataset

from worldflow.ablation import as_table, compare_denoising
from worldflow.checkpoint import save
from worldflow.cli import main
from worldflow.data import Dataset

WAYS = ("none", "tweedie", "denoiser", "clean codes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", lengths=[8] * 12, size=16)


def test_every_way_goes_through_both_decoders(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = import_module("worldflow.ablation")

    def perfect(world: Any, x: torch.Tensor, features: torch.Tensor, *, how: str, **_: Any) -> torch.Tensor:
        return x if how == "tweedie" else 0 * x

    monkeypatch.setattr(module, "denoised", perfect)
    world = tiny_world(denoiser_layers=1, shown=True)
    rows, first = compare_denoising(world, Dataset(data), clips=2, length=4, minutes=1e-4, progress=False)
    assert [(row.way, row.decoder) for row in rows] == [(way, name) for way in WAYS for name in ("clean", "noisy")]
    error = {row.way: row.code_error for row in rows}
    assert error["none"] == pytest.approx(0.3, rel=0.2) and error["tweedie"] == error["none"]
    assert error["denoiser"] > 2 * error["none"] and error["clean codes"] == 0
    assert all(row.psnr_low <= row.psnr <= row.psnr_high and -1 <= row.ssim <= 1 for row in rows)
    assert set(first) == {"recorded", *(f"{row.way}, {row.decoder}" for row in rows)}
    assert len(as_table(rows).splitlines()) == 2 + len(rows)


def test_the_command_writes_numbers_and_a_picture(data: Path, tmp_path: Path) -> None:
    save(tiny_world(), tmp_path / "run", training={})
    words = ["bench", "denoise", str(tmp_path / "run"), str(data), "--clips", "2", "--length", "4"]
    assert main([*words, "--minutes", "0.0001", "--out", str(tmp_path / "out")]) == 0
    table = json.loads((tmp_path / "out" / "denoise.json").read_text())["table"]
    assert {row["way"] for row in table} == {"none", "tweedie", "clean codes"}  # it has no denoiser
    assert (tmp_path / "out" / "denoise.png").stat().st_size > 1000


def test_what_has_no_decoder_or_no_clip_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="no decoder to compare"):
        compare_denoising(tiny_world(codec="patch", latent_dim=192), Dataset(data))
    with pytest.raises(ValueError, match="no held-out episode has 40 transitions"):
        compare_denoising(tiny_world(), Dataset(data), length=40)
