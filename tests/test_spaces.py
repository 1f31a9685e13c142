"""Spaces as JSON."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np

from worldflow.envs.making import serialized
from worldflow.spaces import compact_space, full_space


def test_limits_that_are_all_the_same_are_stored_once_and_come_back() -> None:
    picture = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    reals = gym.spaces.Box(-np.inf, np.inf, (7,), np.float64)
    mixed = gym.spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([1.0, 1.0], np.float32))
    scalar = gym.spaces.Box(0.0, 1.0, (), np.float32)
    spaces = (
        picture,
        reals,
        mixed,
        scalar,
        gym.spaces.Dict({"seen": picture, "joints": mixed}),
        gym.spaces.Discrete(3),
    )
    for space in spaces:
        text = serialized(space)
        compact = compact_space(text)
        assert full_space(compact) == text == full_space(text)
        assert len(compact) <= len(text)
    assert len(compact_space(serialized(picture))) < 100
    assert json.loads(compact_space(serialized(mixed)))["high"] == 1.0
    assert json.loads(compact_space(serialized(mixed)))["low"] == [-1.0, 0.5]
    odd = json.dumps(json.loads(serialized(picture)), separators=(",", ":"))  # not as Minari writes it
    assert compact_space(odd) == odd
