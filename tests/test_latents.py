"""Windows of codes are the codes of windows: the same alignment and padding as reading frames from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import write_dataset

from worldflow.codec import CodecConfig, PatchCodec
from worldflow.data import Dataset, gather
from worldflow.index import window_index
from worldflow.latents import LatentData, encode_dataset, sample_frames
from worldflow.symmetry import transformed

LENGTHS = (7, 1, 12, 3, 5)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(write_dataset(tmp_path / "data", lengths=LENGTHS, size=8))


def encoded(dataset: Dataset, path: Path, *, chunk: int) -> tuple[LatentData, list[int], PatchCodec]:
    codec = PatchCodec(CodecConfig(kind="patch", frame_shape=dataset.spec.frame_shape, patch_size=4))
    progress: list[int] = []
    generator = torch.Generator().manual_seed(0)
    for done in encode_dataset(dataset, codec, path, device=torch.device("cpu"), generator=generator, chunk=chunk):
        if isinstance(done, LatentData):
            return done, progress, codec
        progress.append(done)
    raise AssertionError("no encoded data set came")


@pytest.mark.parametrize("chunk", [1, 10, 1000])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_gathers_what_reading_frames_gathers(dataset: Dataset, tmp_path: Path, length: int, chunk: int) -> None:
    latents, progress, codec = encoded(dataset, tmp_path / "codes.npy", chunk=chunk)
    assert progress[-1] == sum(LENGTHS) + len(LENGTHS) == len(latents.x)
    assert progress == sorted(set(progress))
    lengths = np.asarray(dataset.lengths, dtype=np.int64)
    every = np.array([(e, s) for e, n in enumerate(LENGTHS) for s in range(n)])
    for index in (every, window_index(lengths, length)):
        batch, clip = latents.gather(index, length), gather(dataset, index, length)
        assert torch.equal(batch.valid, clip.valid)
        assert torch.equal(codec.decode(batch.x), clip.frames)
        assert torch.equal(batch.actions, clip.actions)
        assert torch.equal(batch.rewards, clip.rewards)
        assert torch.equal(batch.terminated, clip.terminated)
    assert not latents.gather(every, 9).valid.all()  # there was padding to compare


def test_symmetries_show_every_frame_once_more(dataset: Dataset, tmp_path: Path) -> None:
    codec = PatchCodec(CodecConfig(kind="patch", frame_shape=dataset.spec.frame_shape, patch_size=4))
    symmetries = (0, 4, 3)
    *progress, latents = encode_dataset(
        dataset, codec, tmp_path / "codes.npy", device=torch.device("cpu"), symmetries=symmetries, chunk=10
    )
    assert isinstance(latents, LatentData)
    assert progress[-1] == len(latents.x) == 3 * (sum(LENGTHS) + len(LENGTHS))
    assert latents.num_symmetries == 3
    index = np.array([[e, s] for e, n in enumerate(LENGTHS) for s in range(n)])
    clip = gather(dataset, index, 4)
    for number, element in enumerate(symmetries):
        batch = latents.gather(index, 4, symmetry=torch.full((len(index),), number))
        assert torch.equal(codec.decode(batch.x), transformed(clip.frames, element))
        assert torch.equal(batch.actions, clip.actions)
        assert torch.equal(batch.rewards, clip.rewards)
    mixed = latents.gather(index, 4, symmetry=torch.arange(len(index)) % 3)
    for row in range(len(index)):
        assert torch.equal(codec.decode(mixed.x[row]), transformed(clip.frames[row], symmetries[row % 3]))


def test_codes_live_on_disk(dataset: Dataset, tmp_path: Path) -> None:
    latents, _, _ = encoded(dataset, tmp_path / "codes.npy", chunk=10)
    assert isinstance(latents.x, np.memmap) and isinstance(latents.shown, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), np.stack((latents.x, latents.shown), axis=1))


def test_frames_are_redrawn_through_noise_of_every_strength(dataset: Dataset, tmp_path: Path) -> None:
    latents, _, codec = encoded(dataset, tmp_path / "codes.npy", chunk=1000)
    off = (latents.shown - latents.x) / codec.config.noise_std
    strength = np.sqrt((off**2).mean((1, 2)))
    # Uniform up to three times the density's noise; pixels are clipped, so that up to half of it may be cut off. Of 33
    # frames, none below a third or above half of the range has odds below 1e-5.
    assert len(strength) == 33
    assert strength.min() < 1.0
    assert 1.5 < strength.max() < 3.3


def test_a_full_disk_is_an_error_and_leaves_nothing(dataset: Dataset, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # no file may grow beyond that: as a full disk would
    try:
        with pytest.raises(OSError, match=r"cannot write .*codes\.npy: .*; free some space"):
            encoded(dataset, tmp_path / "codes.npy", chunk=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_batches_move(dataset: Dataset, tmp_path: Path) -> None:
    latents, _, _ = encoded(dataset, tmp_path / "codes.npy", chunk=10)
    batch = latents.gather(np.array([[0, 0]]), 3)
    assert torch.equal(batch.to("cpu").x, batch.x)
    batch.x.add_(1.0)  # a batch is a copy: noise may be added to it
    assert not torch.equal(latents.gather(np.array([[0, 0]]), 3).x, batch.x)


def test_sampled_frames_come_from_training_episodes(dataset: Dataset) -> None:
    train = dataset.episodes("train")
    assert 0 < len(train) < len(dataset)
    everything = np.concatenate([dataset.episode(int(e)).frames for e in train])
    drawn, clips = sample_frames(dataset, 1000, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(drawn, everything)
    # A clip is three frames of one episode that follow each other; where an episode has fewer, the last is repeated.
    ends = np.cumsum([int(dataset.lengths[e]) + 1 for e in train])
    starts = np.concatenate(([0], ends[:-1]))
    expected = [
        [min(i + k, end - 1) for k in range(3)]
        for start, end in zip(starts, ends, strict=True)
        for i in range(start, max(start + 1, end - 2))
    ]
    assert clips.tolist() == expected
    some, _ = sample_frames(dataset, 6, generator=torch.Generator().manual_seed(0), run_length=3)
    known = {frame.tobytes() for frame in everything}
    assert all(frame.tobytes() in known for frame in some)
    assert 2 <= len(some) <= 6
    other, _ = sample_frames(dataset, 6, generator=torch.Generator().manual_seed(1), run_length=3)
    assert some.shape != other.shape or not np.array_equal(some, other)
