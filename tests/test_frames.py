"""Frames in parts are indexed, joined and checked as arrays of frames are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from builders import tiny_spec

from worldflow.frames import (
    Frames,
    as_tensors,
    blank_frames,
    checked_frame,
    mapped,
    observed_frame,
    part_shapes,
    picture,
    together,
)


@pytest.fixture
def frames() -> Frames:
    return Frames(
        {
            "pixels": np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2, 1),
            "speed": np.arange(6, dtype=np.float32).reshape(2, 3, 1),
            "place": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
        }
    )


def test_axes_in_front_are_those_of_an_array(frames: Frames) -> None:
    assert frames.shape == (2, 3) and frames.ndim == 2 and len(frames) == 2
    assert list(frames.keys()) == ["pixels", "place", "speed"]
    some = frames[:, 1:]
    assert some.shape == (2, 2)
    np.testing.assert_array_equal(some["place"], frames["place"][:, 1:])
    assert frames[0, 2].shape == () and frames[0, 2]["pixels"].shape == (2, 2, 1)
    assert [one.shape for one in frames] == [(3,), (3,)]
    np.testing.assert_array_equal(frames.vector[..., :2], frames["place"])
    np.testing.assert_array_equal(frames.vector[..., 2:], frames["speed"])
    assert dict(frames) == frames.parts
    assert part_shapes(frames[0]) == {"pixels": (2, 2, 1), "place": (2,), "speed": (1,)}


def test_is_written_into_and_copied(frames: Frames) -> None:
    copy = frames.copy()
    copy[:, 0] = frames[:, 2]
    np.testing.assert_array_equal(copy["speed"][:, 0], frames["speed"][:, 2])
    assert frames["speed"][0, 0] == 0
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(copy))["pixels"], copy["pixels"])


def test_becomes_tensors_and_back(frames: Frames) -> None:
    tensors = as_tensors(dict(frames))
    assert isinstance(tensors, Frames) and tensors["pixels"].dtype == torch.uint8
    assert tensors.to("cpu").cpu().numpy()["speed"].dtype == np.float32
    assert tensors.vector.shape == (2, 3, 3)


def test_joins_part_by_part_and_arrays_as_they_are(frames: Frames) -> None:
    both = together(np.concatenate, [frames, frames[:1]])
    assert both.shape == (3, 3)
    assert together(np.stack, [np.zeros(3), np.ones(3)]).shape == (2, 3)
    assert mapped(lambda part: part[:1], frames).shape == (1, 3)
    assert mapped(lambda part: part[:1], np.zeros((2, 5))).shape == (1, 5)
    assert picture(frames) is frames["pixels"]
    assert picture(frames["speed"]) is frames["speed"]


def test_says_what_frames_must_be() -> None:
    pixels, numbers = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 3), np.float32)
    for wrong in ({"pixels": pixels}, {"a": pixels, "b": pixels, "c": numbers}, {"a": numbers}, {}):
        with pytest.raises(ValueError, match="one uint8 picture"):
            Frames(wrong)
    with pytest.raises(ValueError, match="must be as many"):
        Frames({"pixels": pixels, "place": numbers[:1]})


def test_an_observation_becomes_a_frame() -> None:
    spec = tiny_spec(size=4, channels=1, beside={"place": 2})
    assert spec.part_shapes == {"pixels": (4, 4, 1), "place": (2,)}
    assert blank_frames(spec, (3, 2)).shape == (3, 2)
    observation = {"pixels": np.zeros((4, 4), np.uint8), "place": np.array([0.1, 0.2])}
    frame = observed_frame(spec, observation)
    assert frame["place"].dtype == np.float32 and frame["pixels"].shape == (4, 4, 1)
    observation["pixels"][:] = 9
    assert not frame["pixels"].any()
    with pytest.raises(ValueError, match=r"dictionary of \['pixels', 'place'\], got \['pixels'\]"):
        checked_frame(spec, {"pixels": observation["pixels"]})
    with pytest.raises(
        ValueError, match=r"frame\['place'\] must be float32 of shape \(2,\), got float64 of shape \(3,\)"
    ):
        checked_frame(spec, {**observation, "place": np.zeros(3)})
    with pytest.raises(ValueError, match="got ndarray"):
        checked_frame(spec, observation["pixels"])
    plain = tiny_spec(size=4, channels=1)
    assert observed_frame(plain, np.zeros((4, 4), np.uint8)).shape == (4, 4, 1)
    assert blank_frames(plain, (2,)).dtype == np.uint8
