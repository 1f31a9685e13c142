"""Recipes fit their data, and refuse what they do not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from builders import tiny_spec

from worldflow.heads import RewardSupport
from worldflow.recipes import Preset, TrainConfig, world_config
from worldflow.world import WorldModel


@pytest.mark.parametrize("codec", ["latent", "patch"])
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_sizes_fit_the_data(codec: Any, action: Any) -> None:
    for preset in get_args(Preset):
        data = tiny_spec(size=64, action=action)
        config = world_config(TrainConfig(preset=preset, codec=codec), data, RewardSupport())
        assert config.data == data
        has_large_cells = codec == "latent"
        assert config.flow.num_tokens == (4 if has_large_cells else 16)
        assert config.codec.pieces == (4 if has_large_cells else 2)
        assert config.flow.action_dim == data.action.feature_dim
        assert config.flow.draft_layers > 0
        assert config.flow.draft_mixing == has_large_cells
        assert config.flow.has_shown == (codec == "latent" and not config.flow.shallow_layers)
        assert config.codec.noise_std == 0.05


def test_presets_grow() -> None:
    sizes = []
    for preset in get_args(Preset):
        config = world_config(TrainConfig(preset=preset), tiny_spec(size=64), RewardSupport())
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in WorldModel(config).parameters()))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 10 * sizes[0]


def test_noise_and_window_may_be_set() -> None:
    train = TrainConfig(noise_std=0.12, window=5, denoiser_layers=1)
    config = world_config(train, tiny_spec(), RewardSupport())
    assert config.codec.noise_std == 0.12
    assert config.flow.window == 5
    assert config.denoiser is not None and config.denoiser.window == 5
    assert world_config(train, tiny_spec(), RewardSupport(), sizes={"window": 4}).flow.window == 4
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        TrainConfig(window=0)


BAD: dict[str, dict[str, Any]] = {
    r"preset must be one of tiny, base, large, got 'huge'": {"preset": "huge"},
    r"codec must be one of latent, patch, got 'pixel'": {"codec": "pixel"},
    "steps must be at least 1, got 0": {"steps": 0},
    "batch must be at least 1, got -3": {"batch": -3},
    "length must be at least 1, got 0": {"length": 0},
    "minutes must be above 0, got 0": {"minutes": 0},
    r"noise_std must be above 0, got 0\.0": {"noise_std": 0.0},
    r"action_dropout must be in \[0, 1\), got 1": {"action_dropout": 1},
    r"codec_share must be in \(0, 1\), got 1": {"codec_share": 1},
}


@pytest.mark.parametrize("message", BAD)
def test_says_what_is_wrong(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**BAD[message])


def test_sizes_of_the_flow_can_be_given() -> None:
    config = world_config(TrainConfig(), tiny_spec(), RewardSupport(), sizes={"deep_layers": 3, "window": 2})
    usual = world_config(TrainConfig(), tiny_spec(), RewardSupport())
    assert (config.flow.deep_layers, config.flow.window) == (3, 2)
    assert config == replace(usual, flow=replace(usual.flow, deep_layers=3, window=2))
    with pytest.raises(ValueError, match=r"a flow has no size 'deep_layer'.*deep_layers"):
        world_config(TrainConfig(), tiny_spec(), RewardSupport(), sizes={"deep_layer": 3})
