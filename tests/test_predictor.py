"""The deterministic baseline: it copies before it learns, beats copying after, and rolls out on its own floats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Action, random_actions, randomize, tiny_spec

from worldflow.codec import to_float, to_uint8
from worldflow.data import Dataset, gather
from worldflow.envs.recorder import Recorder
from worldflow.fingerprint import fingerprint
from worldflow.index import window_index
from worldflow.metrics import mean_squared_error
from worldflow.predictor import FramePredictor, PredictorConfig, fit_predictor
from worldflow.types import Episode


def seconds(step: float = 1.0) -> Callable[[], float]:
    """A clock that every look at it moves on."""
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


def random_predictor(
    *, shape: tuple[int, int, int] = (16, 16, 3), action: Action = "box", past: int = 4
) -> FramePredictor:
    config = PredictorConfig(frame_shape=shape, action=tiny_spec(action=action).action, past=past, widths=(8, 12, 16))
    predictor = FramePredictor(config)
    randomize(predictor, scale=0.5)
    return predictor.eval()


def example(predictor: FramePredictor, *, batch: int = 2, past: int = 3, future: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape, spec = predictor.config.frame_shape, predictor.config.action
    frames = torch.randint(0, 256, (batch, past + 1, *shape), generator=generator, dtype=torch.uint8)
    return [frames, *(random_actions(spec, (batch, length), generator=generator) for length in (past, future))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The left half of the frame is as bright as the sum of the actions' first components."""
    path, spec = tmp_path_factory.mktemp("data") / "lamp", tiny_spec(channels=1)
    recorder = Recorder(path, observation_space=spec.observation_space, action_space=spec.action_space)
    generator = np.random.default_rng(0)
    for number in range(20):
        actions = generator.uniform(-1, 1, (12, 2)).astype(np.float32)
        light = 128 + 30 * np.cumsum(np.concatenate(([generator.uniform(-1, 1)], actions[:, 0])))
        frames = np.full((13, 16, 16, 1), 60, np.uint8)
        frames[:, :, :8] = light.round().clip(0, 255)[:, None, None, None]
        still = np.zeros(12, bool)
        episode = Episode(
            frames=frames, actions=actions, rewards=np.zeros(12, np.float32), terminated=still, truncated=still
        )
        recorder.add(episode, seed=number)
    recorder.finish()
    return Dataset(path)


def test_before_training_the_last_frame_is_copied() -> None:
    predictor = FramePredictor(PredictorConfig(frame_shape=(16, 16, 3), action=tiny_spec().action)).eval()
    frames, past_actions, actions = example(predictor)
    rolled = predictor.rollout(frames, past_actions, actions)
    assert torch.equal(rolled, frames[:, -1:].expand_as(rolled))
    assert 1e6 < sum(p.numel() for p in FramePredictor(_reacher()).parameters()) < 1.5e6


def _reacher() -> PredictorConfig:
    return PredictorConfig(frame_shape=(64, 64, 3), action=tiny_spec().action)


def test_it_learns_what_actions_do(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldflow.predictor.BATCH", 4)  # as much as there is to learn
    before = torch.get_rng_state()
    predictor = fit_predictor(dataset, minutes=5, progress=False, clock=seconds(1.0))  # three looks at the clock a step
    assert torch.equal(torch.get_rng_state(), before)
    assert predictor.fingerprint == fingerprint(dataset, "train")
    assert 300 <= predictor.seconds < 320
    taken = torch.cat([torch.from_numpy(dataset.episode(int(i)).actions) for i in dataset.episodes("train")]).double()
    # Each episode's last action counts twice: 18 of 234.
    torch.testing.assert_close(predictor.actions.mean.double(), taken.mean(0), atol=0.05, rtol=0)
    clips = gather(dataset, window_index(dataset.lengths, 6, episodes=dataset.episodes("held_out")), 6)
    given, real, actions = clips.frames[:, :4], clips.frames[:, 4:], clips.actions[:, 3:]
    copied = mean_squared_error(real, given[:, -1:]).mean(0)
    error = mean_squared_error(real, predictor.rollout(given, clips.actions[:, :3], actions)).mean(0)
    other = mean_squared_error(real, predictor.rollout(given, clips.actions[:, :3], -actions)).mean(0)
    assert error[0] < 0.4 * copied[0]
    assert error.sum() < 0.6 * copied.sum()
    assert error.sum() < 0.3 * other.sum()


@pytest.mark.parametrize("action", ["box", "scalar", "discrete", "multi_discrete"])
@pytest.mark.parametrize("shape", [(16, 16, 1), (64, 64, 3), (37, 20, 3), (150, 90, 1)])
def test_any_frame_and_any_action(shape: tuple[int, int, int], action: Action) -> None:
    predictor = random_predictor(shape=shape, action=action)
    frames, past_actions, actions = example(predictor)
    rolled = predictor.rollout(frames, past_actions, actions)
    assert rolled.shape == (2, 3, *shape)
    assert rolled.dtype == torch.uint8
    # Every pixel can be changed, so none was lost to padding.
    assert bool((rolled[:, 0] != frames[:, -1]).float().mean() > 0.5)
    following = random_actions(predictor.config.action, (2, 3), generator=torch.Generator().manual_seed(5))
    assert not torch.equal(predictor.rollout(frames, past_actions, following), rolled)


def test_rollouts_feed_back_their_own_floats() -> None:
    predictor = random_predictor(past=2)
    frames, past_actions, actions = example(predictor, future=4)
    rolled = predictor.rollout(frames, past_actions, actions)
    seen = list(to_float(frames).unbind(1))
    with torch.no_grad():
        for t in range(4):
            seen.append(predictor(torch.stack(seen[-2:], dim=1), actions[:, t]).clamp(-1, 1))
    expected = to_uint8(torch.stack(seen[-4:], dim=1))
    assert torch.equal(rolled, expected)
    rounded = predictor.rollout(
        torch.cat((frames, rolled[:, :1]), dim=1), torch.cat((past_actions, actions[:, :1]), dim=1), actions[:, 1:]
    )
    assert not torch.equal(rounded, rolled[:, 1:])  # a rounded frame is another start
    # One rollout at a time sums in another order, which may move a number across a rounding edge.
    apart = predictor.rollout(frames, past_actions, actions, chunk=1)
    assert int((apart.int() - rolled.int()).abs().max()) <= 1


def test_missing_frames_are_copies_of_the_first_and_old_ones_do_not_count() -> None:
    predictor = random_predictor(past=4)
    frames, past_actions, actions = example(predictor, past=5)
    short = predictor.rollout(frames[:, :2], past_actions[:, :1], actions)
    repeated = torch.cat((frames[:, :1], frames[:, :1], frames[:, :2]), dim=1)
    assert torch.equal(short, predictor.rollout(repeated, past_actions[:, :3], actions))
    whole = predictor.rollout(frames, past_actions, actions)
    assert torch.equal(whole, predictor.rollout(frames[:, 2:], past_actions[:, 2:], actions))
    assert not torch.equal(whole, predictor.rollout(frames[:, 3:], past_actions[:, 3:], actions))


def test_gradients_reach_every_parameter() -> None:
    predictor = random_predictor().train()
    frames, _, actions = example(predictor)
    predictor(to_float(frames), actions[:, 0]).square().mean().backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


def test_a_file_gives_the_same_predictor_back(tmp_path: Path) -> None:
    predictor = random_predictor(action="multi_discrete")
    predictor.fingerprint, predictor.seconds = "0123456789abcdef", 12.5
    loaded = FramePredictor.load(predictor.save(tmp_path / "new" / "predictor.safetensors"))
    inputs = example(predictor)
    assert torch.equal(loaded.rollout(*inputs), predictor.rollout(*inputs))
    assert (loaded.fingerprint, loaded.seconds, loaded.config) == ("0123456789abcdef", 12.5, predictor.config)
    assert not loaded.training
    with pytest.raises(FileNotFoundError, match=r"no frame predictor at "):
        FramePredictor.load(tmp_path / "nothing")


def test_arguments_are_checked(dataset: Dataset) -> None:
    predictor = random_predictor()
    frames, past_actions, actions = example(predictor)
    with pytest.raises(
        ValueError, match=r"frames must have shape \(batch, past \+ 1, 16, 16, 3\), got \(4, 16, 16, 3\)"
    ):
        predictor.rollout(frames[0], past_actions, actions)
    with pytest.raises(ValueError, match=r"past_actions must have shape \(2, 3, 2\), got \(2, 2, 2\)"):
        predictor.rollout(frames, past_actions[:, 1:], actions)
    for wrong in (actions[..., :1], actions[:1], actions[:, :0], actions[:, 0]):
        with pytest.raises(ValueError, match=r"actions must have shape \(2, future, 2\) with a future, got "):
            predictor.rollout(frames, past_actions, wrong)
    with pytest.raises(TypeError, match=r"frames must be uint8"):
        predictor.rollout(frames.float(), past_actions, actions)
    with pytest.raises(ValueError, match=r"minutes must be above 0, got 0"):
        fit_predictor(dataset, minutes=0, progress=False)
    with pytest.raises(ValueError, match=r"past must be at least 1 frame, got 0"):
        PredictorConfig(frame_shape=(16, 16, 3), action=tiny_spec().action, past=0)
