"""The probe: it reads what is there, from the frames it says, and its errors are those of a closed form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import box_space, randomize, tiny_spec
from safetensors.torch import load_file, save_file

from worldflow.data import Dataset
from worldflow.envs.recorder import Recorder
from worldflow.episodes import recorded_state
from worldflow.fingerprint import fingerprint
from worldflow.probe import ProbeConfig, StateProbe, fit_probe, probe_error
from worldflow.types import Episode

SIZE = 16


def moving_dot(number: int, *, length: int = 12, channels: int = 1) -> Episode:
    """A soft dot on a circle, whose angle moves steadily; state: place, velocity, a constant and a broken one."""
    generator = np.random.default_rng(number)
    angle = generator.uniform(0, 2 * np.pi) + generator.uniform(-0.5, 0.5) * np.arange(length + 1)
    place = 4.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    velocity = np.diff(place, axis=0, prepend=place[:1])
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    distance = (rows - place[:, 0, None, None]) ** 2 + (columns - place[:, 1, None, None]) ** 2
    frames = (40 + 200 * np.exp(-distance / 4)).round().astype(np.uint8)[..., None].repeat(channels, axis=-1)
    broken = np.full((length + 1, 1), np.nan if number == 0 else 1.0 * number)
    return Episode(
        frames=frames,
        actions=np.zeros((length, 2), np.float32),
        rewards=np.zeros(length, np.float32),
        terminated=np.zeros(length, bool),
        truncated=np.arange(length) == length - 1,
        infos={"state": np.concatenate((broken, 100 * place, np.full_like(broken, 7.0), velocity), axis=1)},
    )


def write(path: Path, episodes: list[Episode]) -> Dataset:
    spec = tiny_spec()
    space = box_space(0, 255, episodes[0].frames.shape[1:], "uint8")
    recorder = Recorder(path, observation_space=space, action_space=spec.action_space)
    for number, episode in enumerate(episodes):
        recorder.add(episode, seed=number)
    recorder.finish()
    return Dataset(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("data") / "dots", [moving_dot(number) for number in range(40)])


@pytest.fixture(scope="module")
def probe(dataset: Dataset) -> StateProbe:
    return fit_probe(dataset, steps=100, progress=False)


def held_out(dataset: Dataset) -> tuple[torch.Tensor, np.ndarray]:
    episodes = [dataset.episode(int(number)) for number in dataset.episodes("held_out")]
    return torch.from_numpy(np.stack([e.frames for e in episodes])), np.stack([recorded_state(e) for e in episodes])


def random_probe(*, view: int = 3, channels: int = 3, shape: tuple[int, int] = (SIZE, SIZE)) -> StateProbe:
    probe = StateProbe(ProbeConfig(frame_shape=(*shape, channels), state_dim=4, num_kept=2, view=view))
    randomize(probe)
    probe.kept.copy_(torch.tensor([1, 3]))
    probe.mean.copy_(torch.tensor([9.0, 10.0, 11.0, 12.0]))
    probe.std.copy_(torch.tensor([0.0, 2.0, 5.0, 3.0]))
    return probe.eval()


def test_statistics_are_those_of_the_training_episodes(dataset: Dataset, probe: StateProbe) -> None:
    assert probe.kept.tolist() == [1, 2, 4, 5]  # neither the broken coordinate nor the constant one
    states = np.concatenate([recorded_state(dataset.episode(int(n))) for n in dataset.episodes("train")])[:, 1:]
    np.testing.assert_allclose(probe.mean[1:], states.mean(0), rtol=1e-12)
    np.testing.assert_allclose(probe.std[1:], states.std(0), rtol=1e-9, atol=1e-9)
    assert probe.fingerprint == fingerprint(dataset, "train")


def test_places_and_velocities_are_read_from_frames_never_seen(dataset: Dataset, probe: StateProbe) -> None:
    frames, states = held_out(dataset)
    error = probe_error(probe, frames, states)
    assert error.squared.shape == (4, 13, 4)
    # 100 steps reach 0.16 of a standard deviation; a probe that reads nothing has 1.
    assert error.rms < 0.2
    assert probe.read(frames)[..., :2].std() > 100  # raw units, 100 to the pixel
    noisy = frames.float() + 8 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))  # 30 dB
    assert probe_error(probe, noisy.round().clamp(0, 255).to(torch.uint8), states).rms < 0.3
    backward = probe_error(probe, frames.flip(1), states[:, ::-1])
    assert backward.coordinates[:2].max() < 0.3  # the places are the same, the velocities are not
    assert backward.coordinates[2:].min() > 1


def test_same_seed_same_probe_and_no_global_randomness(dataset: Dataset) -> None:
    before = torch.get_rng_state()
    first, again, other = (fit_probe(dataset, steps=3, seed=seed, progress=False) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(first.head[0].weight, other.head[0].weight)  # pyright: ignore[reportArgumentType]


def test_minutes_are_counted_by_the_clock(dataset: Dataset) -> None:
    now = iter(range(10_000))
    fit_probe(dataset, minutes=0.5, progress=False, clock=lambda: float(next(now)))
    assert 30 <= next(now) < 45  # a call to the clock is a second


@pytest.mark.parametrize(("view", "channels", "shape"), [(3, 3, (16, 16)), (1, 1, (16, 16)), (2, 3, (37, 20))])
def test_a_state_depends_on_its_view_alone(view: int, channels: int, shape: tuple[int, int]) -> None:
    probe = random_probe(view=view, channels=channels, shape=shape)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 6, *shape, channels), generator=generator, dtype=torch.uint8)
    whole = probe.read(frames)
    assert whole.shape == (2, 6, 2)
    assert whole.dtype == torch.float32
    # Other sizes of chunks sum in another order.
    torch.testing.assert_close(probe.read(frames, chunk=5), whole, rtol=1e-5, atol=1e-5)
    for t in range(6):
        seen = frames[:, [max(k, 0) for k in range(t - view + 1, t + 1)]]
        torch.testing.assert_close(probe.read(seen)[:, -1], whole[:, t], rtol=1e-5, atol=1e-5)
        changed = frames.clone()
        changed[:, t] = 255 - changed[:, t]
        moved = ((probe.read(changed) - whole).abs() > 1e-3).any(-1).any(0)
        expected = (torch.arange(6) >= t) & (torch.arange(6) < t + view)
        assert torch.equal(moved, expected)


def test_units_and_errors_are_those_of_the_state() -> None:
    probe = random_probe()
    frames = torch.randint(0, 256, (3, 5, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    read = probe.read(frames).double().numpy()
    true = np.zeros((3, 5, 4))
    true[..., [0, 2]] = np.nan  # not read, so nobody minds
    true[..., 1], true[..., 3] = read[..., 0] + 2 * 0.5, read[..., 1] - 3 * 2.0  # half and two standard deviations
    error = probe_error(probe, frames, torch.from_numpy(true))
    np.testing.assert_allclose(error.squared, np.broadcast_to([0.25, 4.0], (3, 5, 2)), rtol=1e-9)
    np.testing.assert_allclose(error.overall, np.full((3, 5), 2.125), rtol=1e-9)
    np.testing.assert_allclose(error.coordinates, [0.5, 2.0], rtol=1e-9)
    assert error.rms == pytest.approx(2.125**0.5, rel=1e-9)
    standard = probe.states(torch.zeros(1, 3, probe.config.feature_dim)).shape
    assert standard == (1, 1, 2)


def test_a_file_gives_the_same_probe_back(dataset: Dataset, probe: StateProbe, tmp_path: Path) -> None:
    path = probe.save(tmp_path / "new" / "probe.safetensors")
    loaded = StateProbe.load(path)
    frames, _ = held_out(dataset)
    assert torch.equal(loaded.read(frames), probe.read(frames))
    assert loaded.fingerprint == probe.fingerprint
    assert loaded.config == probe.config
    assert not loaded.training
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_files_that_are_no_probe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no state probe at .*probe\.safetensors; name a file"):
        StateProbe.load(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match=r"cannot read .*it is damaged: delete it and fit a new one"):
        StateProbe.load(path)
    probe = random_probe()
    data = probe.save(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"it is damaged"):
        StateProbe.load(path)
    probe.save(path)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"must hold a state probe of format 1, got something else"):
        StateProbe.load(path)
    header = {"format": 1, "kind": "state probe", "config": {"frame_shape": [16, 16, 3], "state_dim": 4, "num_kept": 3}}
    save_file(tensors, path, metadata={"worldflow": json.dumps({**header, "fingerprint": ""})})
    with pytest.raises(ValueError, match=r"does not fit its own header"):
        StateProbe.load(path)


def test_recordings_that_cannot_be_probed_are_refused(tmp_path: Path) -> None:
    plain = [moving_dot(number) for number in range(4)]
    without = write(tmp_path / "without", [replace(episode, infos={}) for episode in plain])
    with pytest.raises(ValueError, match=r'episode \d of .*without has no info\["state"\].*worldflow collect'):
        fit_probe(without, steps=1, progress=False)
    still = write(
        tmp_path / "still",
        [replace(e, infos={"state": np.full((13, 2), number)}) for number, e in enumerate(plain[:1] * 4)],
    )
    assert fit_probe(still, steps=1, progress=False).kept.tolist() == [0, 1]  # differs from episode to episode
    constant = write(tmp_path / "constant", [replace(episode, infos={"state": np.ones((13, 2))}) for episode in plain])
    with pytest.raises(ValueError, match=r'no coordinate of info\["state"\] in .*constant varies and is finite'):
        fit_probe(constant, steps=1, progress=False)
    wide = [replace(e, infos={"state": np.ones((13, 2 + (number == 3)))}) for number, e in enumerate(plain)]
    with pytest.raises(ValueError, match=r"as many coordinates in every episode, got [23] and, in episode \d"):
        fit_probe(write(tmp_path / "wide", wide), steps=1, progress=False)
    with pytest.raises(ValueError, match=r"steps must be at least 1, and minutes above 0 or None, got 0 and None"):
        fit_probe(constant, steps=0, progress=False)


def test_arguments_are_checked() -> None:
    episode = moving_dot(1)
    for state in (np.zeros(13), np.zeros((12, 2)), np.full((13, 2), "a")):
        with pytest.raises(ValueError, match=r"must be numbers of shape \(time \+ 1, state\) = \(13, state\), got "):
            recorded_state(replace(episode, infos={"state": state}))
    probe = random_probe()
    frames = torch.zeros(2, 3, SIZE, SIZE, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"frames must have shape \(batch, time, 16, 16, 3\), got \(3, 16, 16, 3\)"):
        probe.read(frames[0])
    with pytest.raises(TypeError, match=r"frames must be uint8, got torch\.float32"):
        probe.read(frames.float())
    with pytest.raises(
        ValueError, match=r"states must have shape \(rollout, time, state\) = \(2, 3, 4\).*got \(2, 3, 2\)"
    ):
        probe_error(probe, frames, np.zeros((2, 3, 2)))
    with pytest.raises(ValueError, match=r"states hold NaN or infinite numbers in coordinates the probe reads"):
        probe_error(probe, frames, np.full((2, 3, 4), np.nan))
    with pytest.raises(ValueError, match=r"view must be at least 1 frame, got 0"):
        ProbeConfig(frame_shape=(16, 16, 3), state_dim=2, num_kept=2, view=0)
    with pytest.raises(ValueError, match=r"num_kept must be from 1 to the state's 2, got 3"):
        ProbeConfig(frame_shape=(16, 16, 3), state_dim=2, num_kept=3)
