"""Training: the loss falls, every parameter learns, padding counts for nothing, and stopping loses nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_actions, tiny_world, write_dataset

from worldflow import checkpoint
from worldflow.codec import LatentCodec
from worldflow.data import Dataset, gather
from worldflow.fingerprint import episode_hashes
from worldflow.joint import JointClips
from worldflow.latents import LatentBatch, LatentData
from worldflow.log import METRICS, read_log
from worldflow.loss import FlowLoss, flow_loss
from worldflow.recipes import TrainConfig
from worldflow.text_condition import Captions
from worldflow.train import train
from worldflow.world import TextSpec

OPTIONS: dict[str, Any] = {
    "preset": "tiny",
    "codec_steps": 4,
    "codec_batch": 8,
    "batch": 4,
    "length": 4,
    "steps": 6,
    "eval_clips": 4,
    "contexts": 3,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", lengths=[9, 12, 3, 10, 9, 11], size=32)


def clips(world: Any, batch: int, time: int) -> LatentBatch:
    generator = torch.Generator().manual_seed(0)
    valid = torch.arange(time) < torch.tensor([time, time - 2, 1, *[time] * (batch - 3)])[:, None]
    x = torch.randn(batch, time + 1, 4, 3, generator=generator)
    return LatentBatch(
        x=x,
        shown=x + 0.3 * torch.randn(x.shape, generator=generator),
        actions=random_actions(world.config.data.action, (batch, time), generator=generator),
        rewards=torch.where(valid, torch.rand(batch, time, generator=generator).round(), 0.0),
        terminated=(torch.rand(batch, time, generator=generator) < 0.3) & valid,
        valid=valid,
    )


def loss(world: Any, batch: LatentBatch, *, seed: int = 1, **options: Any) -> FlowLoss:
    generator = torch.Generator().manual_seed(seed)
    return flow_loss(world, batch, generator=generator, config=TrainConfig(action_dropout=0.5), **options)


@pytest.mark.parametrize("action", ["box", "discrete"])
def test_every_parameter_gets_a_gradient(action: Any) -> None:
    world = tiny_world(action=action).train()
    world.codec.eval().requires_grad_(False)
    loss(world, clips(world, 6, 5)).total.backward()
    idle = [n for n, p in world.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


def test_codec_passes_gradients_to_all_its_parameters() -> None:
    codec: Any = tiny_world().codec.train()
    frames = torch.randint(0, 256, (4, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    codec.loss(frames[None], smoothness=0.1, generator=torch.Generator().manual_seed(0)).total.backward()
    idle = [n for n, p in codec.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_drafts_are_made_from_recorded_frames_and_then_from_redrawn_ones() -> None:
    world = tiny_world(shown=True).train()
    world.codec.eval().requires_grad_(False)
    batch, given = clips(world, 64, 5), []
    read = world.flow.forward

    def forward(x: torch.Tensor, *args: Any, shown: torch.Tensor, **options: Any) -> Any:
        given.append(shown)
        return read(x, *args, shown=shown, **options)

    world.flow.forward = forward  # type: ignore[method-assign]
    loss(world, batch)
    is_recorded = (given[0] == batch.x).all(-1).all(-1)
    assert torch.equal(torch.where(is_recorded[..., None, None], batch.x, batch.shown), given[0])
    assert (is_recorded.long().diff(dim=1) <= 0).all()  # once redrawn, always redrawn
    # The number of recorded frames is uniform over 1 .. 6: a count over 64 clips beyond 28 has odds below 1e-6.
    assert all(1 <= int((is_recorded.sum(1) == n).sum()) <= 28 for n in range(1, 7))


def test_loss_is_the_mean_over_valid_frames() -> None:
    world = tiny_world().eval()
    batch = clips(world, 4, 5)
    with torch.no_grad():
        found = loss(world, batch)
        # The same, clip by clip, with world.log_prob's own parts.
        x = batch.x + 0.3 * torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(1))
        above, draft, reward, termination, frames = 0.0, 0.0, 0.0, 0.0, 0
        for row in range(4):
            length = int(batch.valid[row].sum())
            features = torch.cat((torch.zeros(1, 2), world.encode_actions(batch.actions[row, :length])))
            out = world.flow(x[row : row + 1, : length + 1], features[None])
            assert out.draft is not None
            above += float(world.above_floor(out.log_prob).sum())
            draft += float((out.draft - out.u)[:, 1:].square().mean((-2, -1)).sum())
            scored = world.log_prob_latents(
                x[row : row + 1, : length + 1],
                batch.actions[row : row + 1, :length],
                batch.rewards[row : row + 1, :length],
                batch.terminated[row : row + 1, :length],
            )
            reward -= float(scored.reward.sum())
            termination -= float(scored.terminated.sum())
            frames += length
    # float32 sums in another order
    assert float(found.above_floor) == pytest.approx(above / (frames + 4), rel=1e-4)
    assert float(found.draft_error) == pytest.approx(draft / frames, rel=1e-4)
    assert float(found.reward_nll) == pytest.approx(reward / frames, rel=1e-4)
    assert float(found.termination_nll) == pytest.approx(termination / frames, rel=1e-4)
    parts = found.above_floor + found.draft_error + 0.1 * (found.reward_nll + found.termination_nll)
    assert float(found.total) == pytest.approx(float(parts), rel=1e-6)


def test_padding_counts_for_nothing() -> None:
    world = tiny_world().eval()
    batch = clips(world, 4, 5)
    padded = ~torch.cat((torch.ones(4, 1, dtype=torch.bool), batch.valid), 1)
    assert padded.any()
    noise = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(9))
    other = replace(
        batch,
        x=torch.where(padded[..., None, None], noise, batch.x),
        rewards=torch.where(batch.valid, batch.rewards, 5.0),
        terminated=torch.where(batch.valid, batch.terminated, True),
        actions=torch.where(batch.valid[..., None], batch.actions, 0.5),
    )
    with torch.no_grad():
        one, two = loss(world, batch), loss(world, other)
    for name in ("total", "above_floor", "draft_error", "reward_nll", "termination_nll"):
        assert float(getattr(one, name)) == float(getattr(two, name)), name


def test_swapped_actions_are_a_neighbors() -> None:
    world = tiny_world().eval()
    batch = clips(world, 4, 5)
    with torch.no_grad():
        swapped = loss(world, batch, swap=True)
        rolled = loss(world, replace(batch, actions=batch.actions.roll(1, 0)))
        assert float(swapped.total) == float(rolled.total)
        assert float(swapped.above_floor) != float(loss(world, batch).above_floor)


def test_dropped_actions_are_seen_in_training_only() -> None:
    world = tiny_world()
    batch = clips(world, 4, 5)
    config = TrainConfig(action_dropout=0.999)
    other = replace(batch, actions=-batch.actions)

    def above(clip: LatentBatch) -> float:
        found = flow_loss(world, clip, generator=torch.Generator().manual_seed(0), config=config)
        return float(found.above_floor.detach())

    world.train()
    assert above(batch) == above(other)
    world.eval()
    assert above(batch) != above(other)


def test_loss_falls_and_the_run_is_complete(data: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    options: dict[str, Any] = OPTIONS | {"codec_steps": 30, "steps": 81}
    world = train(data, out=tmp_path / "run", **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert not world.training

    records = read_log(tmp_path / "run")
    assert {name for record in records for name in record} - {"step", "seconds"} <= set(METRICS)
    curves = {
        name: [record[name] for record in records if name in record]
        for name in ("codec/loss", "flow/above_floor", "held_out/above_floor")
    }
    assert curves["codec/loss"][-1] < curves["codec/loss"][0]
    assert curves["flow/above_floor"][-1] < 0.9 * curves["flow/above_floor"][0]
    assert len(curves["held_out/above_floor"]) >= 1
    assert all(math.isfinite(value) for values in curves.values() for value in values)

    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"world.json", "world.safetensors", "contexts.npz", "training.pt", "log.jsonl"} <= names
    assert not {name for name in names if name.startswith(".") or name == "latents.npy"}
    record = json.loads((tmp_path / "run" / "world.json").read_text())
    assert record["training"]["config"]["steps"] == 81
    assert record["training"]["episode_hashes"] == episode_hashes(Dataset(data), "train")
    seconds = {
        part: max(r["seconds"] for r in records if f"{part}/loss" in r or f"{part}/above_floor" in r)
        for part in ("codec", "flow")
    }
    # both stages count; the log's last records are a little older than their ends
    assert record["training"]["minutes_trained"] * 60 >= sum(seconds.values())

    loaded = checkpoint.load(tmp_path / "run")
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in world.state_dict().items())
    contexts, dataset = loaded.contexts, Dataset(data)
    assert contexts is not None and 1 <= len(contexts) <= 3
    held_out = [dataset.episode(int(e)).frames for e in dataset.episodes("held_out")]
    known = {frame.tobytes() for frames in held_out for frame in frames}
    assert all(frame.tobytes() in known for frame in contexts.frames.flatten(0, 1).numpy())
    # Actions are standardized by the training episodes' statistics, codes by those of their frames.
    episodes = [dataset.episode(int(e)) for e in dataset.episodes("train")]
    actions = np.concatenate([e.actions for e in episodes])
    np.testing.assert_allclose(loaded.actions.mean, actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(loaded.actions.std, actions.std(0), rtol=1e-5)
    with torch.no_grad():
        codes = loaded.codec.encode(torch.from_numpy(np.concatenate([e.frames for e in episodes]))).flatten(0, 1)
    # Every training frame went into the statistics once; the norm's 1e-5 beside small variances is the rest.
    assert codes.mean(0).abs().max() < 0.02
    assert (codes.std(0) - 1).abs().max() < 0.05


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stage", ["codec", "flow", "joint"])
def test_resuming_goes_on_as_if_nothing_had_happened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    options: dict[str, Any] = OPTIONS | {"save_every": 1e-9, "joint": stage == "joint"}
    straight = train(data, out=tmp_path / "straight", **options)
    # `worldflow.train` is the function; the module of that name is reached by its import.
    target, name = (LatentCodec, "loss") if stage == "codec" else (import_module("worldflow.train"), "loss_of_drawn")
    original, calls = getattr(target, name), [0]

    def stops(*arguments: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise StoppedError
        return original(*arguments, **settings)

    monkeypatch.setattr(target, name, stops)
    with pytest.raises(StoppedError):
        train(data, out=tmp_path / "run", **options)
    monkeypatch.undo()
    steps = [record["step"] for record in read_log(tmp_path / "run")]
    resumed = train(data, out=tmp_path / "run", resume=True, **options)
    assert len(read_log(tmp_path / "run")) > len(steps)
    # Weights, optimizer, schedule and generator come back: the same numbers, one thread, to the last bit.
    assert all(torch.equal(t, resumed.state_dict()[n]) for n, t in straight.state_dict().items())


@pytest.mark.parametrize("symmetry", ["mirror", "square"])
def test_symmetries_are_trained_on_and_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symmetry: str
) -> None:
    options: dict[str, Any] = OPTIONS | {"save_every": 1e-9, "symmetry": symmetry}
    module = import_module("worldflow.train")
    original, seen, calls = module.loss_of_drawn, set(), [0]

    def watched(world: Any, drawn: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 40:
            raise StoppedError
        assert settings["maps"] is not None
        seen.update(drawn["symmetry"].tolist())
        return original(world, drawn, **settings)

    monkeypatch.setattr(module, "loss_of_drawn", watched)
    long: dict[str, Any] = options | {"steps": 60}
    with pytest.raises(StoppedError):
        train(data, out=tmp_path / "run", **long)
    assert seen == set(range(8 if symmetry == "square" else 2))
    monkeypatch.undo()
    straight = train(data, out=tmp_path / "straight", **long)
    resumed = train(data, out=tmp_path / "run", resume=True, **long)
    assert all(torch.equal(t, resumed.state_dict()[n]) for n, t in straight.state_dict().items())
    maps = [torch.load(tmp_path / run / "training.pt", weights_only=True)["maps"] for run in ("run", "straight")]
    assert maps[0]["change"].any() and torch.equal(maps[0]["change"], maps[1]["change"])
    plain = train(data, out=tmp_path / "plain", **OPTIONS)  # a world is the same kind of thing with them or without
    assert set(plain.state_dict()) == set(resumed.state_dict())


def test_a_codec_is_taken_over_as_it_is(data: Path, tmp_path: Path) -> None:
    first = train(data, out=tmp_path / "first", **OPTIONS)
    codec = {name: value.clone() for name, value in first.codec.state_dict().items()}
    other_seed: dict[str, Any] = OPTIONS | {"seed": 3}
    second = train(data, out=tmp_path / "second", codec_from=str(tmp_path / "first"), **other_seed)
    assert all(torch.equal(value, second.codec.state_dict()[name]) for name, value in codec.items())
    assert not any("codec/loss" in record for record in read_log(tmp_path / "second"))
    with pytest.raises(ValueError, match=r"the codec of .*first is CodecConfig.*, these options and data need"):
        other_noise: dict[str, Any] = OPTIONS | {"noise_std": 0.4}
        train(data, out=tmp_path / "third", codec_from=str(tmp_path / "first"), **other_noise)
    with pytest.raises(FileNotFoundError, match="no world at"):
        train(data, out=tmp_path / "fourth", codec_from=str(tmp_path / "nowhere"), **OPTIONS)


def test_captions_are_read(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("worldflow.train")
    spec = TextSpec(encoder="somewhere", identity="some", words=2, dim=3)
    texts = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))

    def embed(captions: list[str | None], **options: Any) -> Captions:
        assert options["encoder"] == "somewhere" and options["words"] == 2
        place = np.array([int(caption or 0) for caption in captions])
        return Captions(spec=spec, texts=texts, text_of=place, nothing=texts[0])

    monkeypatch.setattr(module, "embed_captions", embed)
    monkeypatch.setattr(Dataset, "caption", lambda self, i: str(1 + i % 2), raising=False)
    world = train(data, out=tmp_path / "run", text="somewhere", text_words=2, text_dropout=0.5, **OPTIONS)
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded.config.text == spec
    assert loaded.nothing is not None and torch.equal(loaded.nothing, texts[0])
    assert loaded.config.flow.shallow_layers and not loaded.config.flow.has_shown
    latents = LatentData(
        x=np.zeros((12, 4, 3), np.float32),
        shown=np.zeros((12, 4, 3), np.float32),
        first_frame=np.array([0, 6]),
        lengths=np.array([5, 5]),
        actions=np.zeros((10, 2), np.float32),
        rewards=np.zeros(10, np.float32),
        terminated=np.zeros(10, bool),
        texts=texts,
        text_of=np.array([2, 1]),
    )
    batch = latents.gather(np.array([[0, 1], [1, 0], [0, 0]]), 2)
    assert batch.text is not None and torch.equal(batch.text, texts[[2, 1, 2]])
    assert torch.equal(batch.to("cpu").text, batch.text)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(Dataset, "caption", lambda self, i: None, raising=False)
    with pytest.raises(ValueError, match=r"no episode of .* has a caption, but text is given"):
        train(data, out=tmp_path / "other", text="somewhere", **OPTIONS)
    assert world.training is False


def test_the_denoiser_learns_the_likelihoods_gradient() -> None:
    world = tiny_world(shown=True, denoiser_layers=1).train()
    world.codec.eval().requires_grad_(False)
    batch = clips(world, 4, 5)
    found = loss(world, batch)
    plain = found.above_floor + found.draft_error + 0.1 * (found.reward_nll + found.termination_nll)
    assert float(found.total.detach()) == pytest.approx(float((plain + found.denoiser_error).detach()), rel=1e-6)
    # The target by finite differences of the clip's log-likelihood, in float64, for the same draws.
    world = tiny_world(shown=True, denoiser_layers=1, dtype=torch.float64)
    world.codec.eval()
    x = (batch.x + 0.1).double().requires_grad_()
    features = torch.cat((torch.zeros(4, 1, 2).double(), world.encode_actions(batch.actions).double()), dim=1)
    total = -world.flow(x, features, shown=batch.shown.double()).log_prob.sum()
    (gradient,) = torch.autograd.grad(total, x)
    step = torch.zeros_like(x)
    step[1, 2, 0, 1] = 1e-6
    with torch.no_grad():
        up, down = (
            -world.flow(x + sign * step, features, shown=batch.shown.double()).log_prob.sum() for sign in (1, -1)
        )
    assert float(gradient[1, 2, 0, 1]) == pytest.approx(float((up - down) / 2e-6), rel=1e-5)


def test_a_denoiser_is_trained_saved_and_leaves_the_flow_alone(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = OPTIONS | {"codec_steps": 30, "steps": 60}
    world = train(data, out=tmp_path / "run", denoiser_layers=1, **options)
    assert any("flow/denoiser_error" in record for record in read_log(tmp_path / "run"))
    # It explains a part of the gradient that it has to: a score of zero is worse.
    episode = Dataset(data).episode(1)
    codes = world.codes(torch.from_numpy(episode.frames))[None]
    batch = LatentBatch(
        x=codes,
        shown=codes,
        actions=torch.from_numpy(episode.actions)[None],
        rewards=torch.from_numpy(episode.rewards)[None],
        terminated=torch.from_numpy(episode.terminated)[None],
        valid=torch.ones(1, len(episode), dtype=torch.bool),
    )
    learned = float(loss(world, batch).denoiser_error.detach())
    assert world.denoiser is not None
    kept = {name: value.clone() for name, value in world.denoiser.state_dict().items()}
    torch.nn.init.zeros_(world.denoiser.proj_out.weight)
    torch.nn.init.zeros_(world.denoiser.proj_out.bias)
    assert learned < 0.95 * float(loss(world, batch).denoiser_error.detach())
    world.denoiser.load_state_dict(kept)
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded.denoiser is not None and loaded.denoiser.proj_out.weight.any()
    assert loaded.config.denoiser == world.config.denoiser


def test_dropped_texts_are_seen_in_training_only() -> None:
    world = tiny_world(text_dim=5)
    batch = clips(world, 4, 5)
    one, other = (replace(batch, text=torch.full((4, 3, 5), value)) for value in (1.0, -1.0))
    config = TrainConfig(text_dropout=0.999)

    def above(clip: LatentBatch) -> float:
        found = flow_loss(world, clip, generator=torch.Generator().manual_seed(0), config=config)
        return float(found.above_floor.detach())

    world.train()
    assert above(one) == above(other)
    world.eval()
    assert above(one) != above(other)


def test_says_what_is_wrong(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "progress": False}
    with pytest.raises(FileNotFoundError, match="there is no training"):
        train(data, out=tmp_path / "run", resume=True, **options)
    with pytest.raises(ValueError, match="preset must be one of tiny, base, large, got 'huge'"):
        train(data, out=tmp_path / "run", preset="huge", **options)
    with pytest.raises(ValueError, match=r"give either config or its fields, got both config and \['steps'\]"):
        train(data, out=tmp_path / "run", config=TrainConfig(), steps=3)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        train(tmp_path / "nowhere", out=tmp_path / "run", **options)
    single = write_dataset(tmp_path / "single", lengths=[9], size=16)
    with pytest.raises(ValueError, match="training needs at least 2 episodes, one of them held out, got 1"):
        train(single, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "world.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already holds a run; name another folder, or resume it"):
        train(data, out=tmp_path / "run", **options)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["world.json"]

    with pytest.raises(ValueError, match="unknown option 'minuts'; did you mean 'minutes'"):
        train(data, out=tmp_path / "other", minuts=3)
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used here"):
        train(data, out=tmp_path / "other", device="cuda:77")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file; name a folder for the run"):
        train(data, out=tmp_path / "file", **options)
    with pytest.raises(ValueError, match="symmetry must be one of none, mirror, square, got 'round'"):
        train(data, out=tmp_path / "other", symmetry="round", **options)
    short = write_dataset(tmp_path / "short", lengths=[1, 1, 1], size=16)
    with pytest.raises(ValueError, match="no held-out episode is longer than 1 transition"):
        train(short, out=tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "training.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(
        ValueError, match=r"training.pt is damaged or no state of a training; train anew in another folder"
    ) as error:
        train(data, out=tmp_path / "damaged", resume=True, **options)
    assert "\n" not in str(error.value)


def test_interrupt_keeps_what_was_learned(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("worldflow.train")
    original, calls = module.loss_of_drawn, [0]

    def stops(*arguments: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(module, "loss_of_drawn", stops)
    with pytest.raises(KeyboardInterrupt, match="what it has learned is kept: resume to go on"):
        train(data, out=tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    kept = torch.load(tmp_path / "run" / "training.pt", weights_only=True)
    assert (kept["stage"], kept["step"]) == ("flow", 2)
    assert kept["spent"]["codec"] > 0 and kept["spent"]["flow"] == kept["seconds"]
    resumed = train(data, out=tmp_path / "run", resume=True, **OPTIONS)
    assert torch.load(tmp_path / "run" / "training.pt", weights_only=True)["step"] == OPTIONS["steps"]
    same = [torch.equal(t, resumed.state_dict()[n]) for n, t in kept["world"].items() if n.startswith("codec.")]
    assert same and all(same)  # the codec was done and is not trained again


def test_full_disk_is_told_and_leaves_no_half_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(record: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos\nmore lines")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*training.pt: .*; free some space, then resume") as error:
        train(data, out=tmp_path / "run", **OPTIONS)
    assert "\n" not in str(error.value)
    assert not [p.name for p in (tmp_path / "run").iterdir() if "training" in p.name]


def test_joint_training_moves_the_encoder_by_the_flow_too(tmp_path: Path, data: Path) -> None:
    world = train(data, out=tmp_path / "run", joint=True, **OPTIONS)
    assert not (tmp_path / "run" / "latents.npy").exists()
    found = read_log(tmp_path / "run")
    assert any("flow/psnr" in row for row in found) and not any("codec/psnr" in row for row in found)
    codec: Any = world.codec.train()
    clips = JointClips(dataset=Dataset(data), codec=codec, generator=torch.Generator().manual_seed(0))
    batch = clips.gather(np.array([[0, 0], [1, 2]]), 4)
    alone = loss(world.train(), replace(batch, codec_loss=None, codec_error=None))
    encoder = codec.code_out.weight
    (by_flow,) = torch.autograd.grad(alone.above_floor, encoder, retain_graph=True)
    assert by_flow.norm() > 0
    # Drafts take codes as given.
    (by_drafts,) = torch.autograd.grad(alone.draft_error, encoder, retain_graph=True, allow_unused=True)
    assert by_drafts is None or not by_drafts.any()


def test_joint_clips_are_those_of_the_finished_codec(tmp_path: Path, data: Path) -> None:
    world = train(data, out=tmp_path / "run", joint=True, **OPTIONS).eval()
    dataset = Dataset(data)
    clips = JointClips(dataset=dataset, codec=world.codec, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    with torch.no_grad():
        batch = clips.gather(np.array([[0, 1], [2, 0]]), 5)
    recorded = gather(dataset, np.array([[0, 1], [2, 0]]), 5)
    torch.testing.assert_close(batch.x, world.codes(recorded.frames))
    assert torch.equal(batch.valid, recorded.valid) and torch.equal(batch.actions, recorded.actions)
    assert batch.codec_error is not None and batch.codec_loss is not None
    # Twice the error costs half the logarithm of two for every pixel value, per value of the latent.
    per = 32 * 32 * 3 / batch.x[0, 0].numel()
    through = world.codec.loss(recorded.frames, generator=torch.Generator().manual_seed(0)).total  # type: ignore[operator]
    torch.testing.assert_close(batch.codec_loss, 0.5 * per * through.log(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"codec": "patch"}, "no codec to train"), ({"codec_from": "runs/other"}, "taken over")],
)
def test_joint_needs_a_codec_that_learns(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(joint=True, **options)
