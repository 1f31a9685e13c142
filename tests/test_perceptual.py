"""LPIPS is left out with a reason wherever something for it is missing, and nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from worldflow import perceptual

CPU = torch.device("cpu")


def test_reasons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None if name == "torchmetrics" else SimpleNamespace())
    assert "torchmetrics not installed" in str(perceptual.perceptual_distance((64, 64, 3), device=CPU))
    monkeypatch.setattr(perceptual, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "weights of AlexNet are not at hand" in str(perceptual.perceptual_distance((64, 64, 3), device=CPU))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-0.pth").touch()
    assert "at least 32 rows" in str(perceptual.perceptual_distance((16, 64, 3), device=CPU))


def test_frames_are_given_one_by_one_in_colors_between_minus_one_and_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-0.pth").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "find_spec", lambda name: SimpleNamespace())

    def lpips(x: torch.Tensor, y: torch.Tensor, *, net_type: str) -> torch.Tensor:
        assert x.shape == y.shape == (1, 3, 32, 40) and net_type == "alex"
        assert x.min() >= -1 and x.max() <= 1
        return (x - y).abs().mean()

    module = ModuleType("torchmetrics.functional.image")
    module.__dict__["learned_perceptual_image_patch_similarity"] = lpips
    monkeypatch.setitem(sys.modules, "torchmetrics", ModuleType("torchmetrics"))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", ModuleType("torchmetrics.functional"))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", module)
    distance = perceptual.perceptual_distance((32, 40, 1), device=CPU)
    assert not isinstance(distance, str)
    black, white = torch.zeros(2, 32, 40, 1, dtype=torch.uint8), torch.full((2, 32, 40, 1), 255, dtype=torch.uint8)
    white[1] = 0
    np.testing.assert_allclose(distance(black, white), [2.0, 0.0], atol=1e-6)
