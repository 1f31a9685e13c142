"""Videos from text, images and videos are draws of the world's own flow, under the conditions that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_world
from PIL import Image
from torch import Tensor

from worldflow.checkpoint import save
from worldflow.cli import main
from worldflow.generate import denoised, edit, generate, read_frames
from worldflow.video import read_video, write_video
from worldflow.world import WorldModel


def embed(prompts: Sequence[str]) -> Tensor:
    """Three words of five channels for each prompt, by its characters."""
    rows = [torch.Generator().manual_seed(sum(map(ord, prompt))) for prompt in prompts]
    return torch.stack([torch.randn(3, 5, generator=row) for row in rows])


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that needs no files."""

    def reader(world: WorldModel, encoder: str | None = None) -> Any:
        if world.config.text is None:
            raise ValueError("this world reads no text")
        return lambda prompts: SimpleNamespace(tokens=embed(prompts))

    # `worldflow.generate` is the function; the module of that name is reached by its import.
    monkeypatch.setattr(import_module("worldflow.generate"), "encoder_of", reader)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(world: WorldModel, count: int, *, seed: int = 3) -> np.ndarray:
    shape = (count, *world.config.data.frame_shape)
    return torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8).numpy()


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("past", [0, 1, 4])
def test_videos_are_what_the_flow_makes_of_their_noise(past: int, guidance: float) -> None:
    world = tiny_world(text_dim=5)
    given = pictures(world, past) if past else None
    texts = ["a red circle", "a blue square"]
    made = generate(world, frames=6, text=texts, given=given, guidance=guidance, generator=seeded())
    assert made.shape == (2, 6, 16, 16, 3)
    assert made.dtype == torch.uint8

    generator, context = seeded(), None
    if given is not None:
        assert torch.equal(made[1, :past], torch.from_numpy(given))
        codes = world.codes(torch.from_numpy(given)[None]).expand(2, -1, -1, -1)
        context = world.with_noise(codes, generator=generator)
    shape = (2, world.config.flow.num_tokens, world.config.flow.latent_dim)
    z = torch.stack([torch.zeros(shape)] * past + [torch.randn(shape, generator=generator) for _ in range(6 - past)], 1)
    nothing = world._text(None, 2)
    x = world.flow.inverse(
        z,
        torch.zeros(2, 6, world.config.flow.action_dim),
        text=embed(texts),
        text_without=nothing,
        guidance=guidance,
        context=context,
        hide_actions=True,
        tolerance=1e-4,
    )
    expected = world.codec.decode(x)
    assert (made[:, past:].int() - expected[:, past:].int()).abs().max() <= 1


@pytest.mark.parametrize("shown", [False, True])
def test_given_actions_are_followed_and_unknown_ones_are_hidden(shown: bool) -> None:
    world = tiny_world(shown=shown)
    given = pictures(world, 2)
    actions = torch.rand(5, 2, generator=seeded(1)).numpy()
    one, same = (generate(world, frames=6, given=given, actions=actions, generator=seeded()) for _ in range(2))
    assert torch.equal(one, same)
    other = generate(world, frames=6, given=given, actions=-actions, generator=seeded())
    hidden = generate(world, frames=6, given=given, generator=seeded())
    assert not torch.equal(one[:, 2:], other[:, 2:])
    assert not torch.equal(one[:, 2:], hidden[:, 2:])
    # The same draws as stepping the world by hand.
    generator = seeded()
    state = world.start(torch.from_numpy(given)[None], torch.from_numpy(actions[None, :1]), generator=generator)
    shape = (1, world.config.flow.num_tokens, world.config.flow.latent_dim)
    for t in range(2, 6):
        z = torch.randn(shape, generator=generator)
        drawn = world.flow.draw(state, world.encode_actions(actions[None, None, t - 1])[:, 0], z)
        frame, state = world.codec.decode(world.flow.from_deep(drawn.u)), drawn.state
        if shown:
            state = world.flow.show(state, world.codes(frame))
        assert (frame[0].int() - one[0, t].int()).abs().max() <= 1


@pytest.mark.parametrize("shown", [False, True])
def test_guidance_goes_away_from_hidden_actions(shown: bool) -> None:
    world = tiny_world(shown=shown)
    given, actions = pictures(world, 1), torch.rand(3, 2, generator=seeded(1)).numpy()
    options: dict[str, Any] = {"frames": 4, "given": given, "actions": actions}
    plain, guided = (generate(world, guidance=w, generator=seeded(), **options) for w in (0.0, 2.0))
    assert not torch.equal(plain, guided)


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("how", ["tweedie", "denoiser"])
def test_finished_videos_are_denoised(shown: bool, how: Any) -> None:
    world = tiny_world(shown=shown, text_dim=5, denoiser_layers=1)
    given = pictures(world, 2)
    options: dict[str, Any] = {"frames": 5, "text": "a red circle", "given": given}
    noisy, clean = (generate(world, denoise=d, generator=seeded(), **options) for d in ("none", how))
    assert torch.equal(noisy[:, :2], clean[:, :2])  # what was given stays as it is
    assert not torch.equal(noisy[:, 2:], clean[:, 2:])
    if how == "tweedie":  # by its definition: a step up the log-likelihood raises it
        x = world.encode(noisy[:, :4], generator=seeded())
        codes = world.codes(noisy[:, :4]) if shown else None
        features, text = torch.zeros(1, 4, 2), embed(["a red circle"])
        better = denoised(world, x, features, how="tweedie", text=text, shown=codes)
        small = x + 1e-3 * (better - x)
        with torch.no_grad():
            one, two = (world.flow(v, features, text=text, shown=codes).log_prob.sum() for v in (x, small))
        assert two > one
    else:
        assert torch.equal(
            denoised(world, torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 2), how="none"), torch.zeros(1, 2, 4, 3)
        )
        with pytest.raises(ValueError, match="has no denoiser; train it with denoiser_layers"):
            generate(tiny_world(), frames=2, denoise="denoiser")
        with pytest.raises(ValueError, match="denoise must be one of none, tweedie, denoiser, got 'much'"):
            generate(tiny_world(), frames=2, denoise="much")  # pyright: ignore[reportArgumentType]


def test_samples_of_one_prompt_differ_and_prompts_matter() -> None:
    world = tiny_world(text_dim=5)
    two = generate(world, frames=3, text="a red circle", samples=2, generator=seeded())
    assert not torch.equal(two[0], two[1])
    red, blue, nothing = (
        generate(world, frames=3, text=text, generator=seeded()) for text in ("a red circle", "a blue square", None)
    )
    assert torch.equal(red, generate(world, frames=3, text="a red circle", generator=seeded()))
    assert not torch.equal(red, blue)
    assert not torch.equal(red, nothing)


def test_an_edit_that_changes_nothing_keeps_the_video() -> None:
    world = tiny_world(text_dim=5)
    video = pictures(world, 4)
    kept = edit(world, video, text="a", source="a", strength=0.0, generator=seeded())
    x = world.encode(torch.from_numpy(video)[None], generator=seeded())
    assert (kept.int() - world.codec.decode(x)[0].int()).abs().max() <= 1
    changed = edit(world, video, text="b", source="a", strength=0.0, generator=seeded())
    redrawn = edit(world, video, text="a", source="a", strength=1.0, generator=seeded())
    assert not torch.equal(kept, changed)
    assert not torch.equal(kept, redrawn)


def test_files_are_cut_to_the_middle_and_scaled(tmp_path: Path) -> None:
    world = tiny_world()
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :16], picture[:, 48:] = (255, 0, 0), (0, 255, 0)  # outside of the middle square
    picture[:16, 16:32] = 200
    Image.fromarray(picture).save(tmp_path / "image.png")
    frames = read_frames(tmp_path / "image.png", world)
    assert frames.shape == (1, 16, 16, 3)
    assert np.array_equal(frames[0], picture[::2, 16:48:2])
    clip = np.stack([np.full((16, 16, 3), 20 * t, np.uint8) for t in range(6)])
    write_video(clip, tmp_path / "clip.gif")
    assert np.array_equal(read_frames(tmp_path / "clip.gif", world), clip)
    assert np.array_equal(read_frames(tmp_path / "clip.gif", world, last=2), clip[-2:])
    gray = tiny_world(channels=1)
    assert np.array_equal(read_frames(tmp_path / "clip.gif", gray), clip[..., :1])
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(ValueError, match="not a readable video"):
        read_frames(tmp_path / "note.txt", world)


def test_says_what_is_wrong() -> None:
    world, silent = tiny_world(text_dim=5), tiny_world()
    with pytest.raises(ValueError, match="reads no text"):
        generate(silent, text="a red circle")
    with pytest.raises(ValueError, match="guidance goes beyond a text or actions"):
        generate(world, guidance=1.0)
    with pytest.raises(ValueError, match=r"given frames must have shape \(past, 16, 16, 3\), got \(1, 8, 8, 3\)"):
        generate(world, given=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="at least one sample of at least 3 frames, got 1 of 2"):
        generate(world, frames=2, given=np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="6 frames need 5 actions, got 4"):
        generate(silent, frames=6, actions=np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="strength must be between 0 and 1, got 2"):
        edit(world, pictures(world, 2), text="a", strength=2)
    with pytest.raises(ValueError, match="as they are shown"):
        edit(tiny_world(shown=True, text_dim=5), pictures(world, 2), text="a")


def test_the_command_writes_films(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(save(tiny_world(text_dim=5), tmp_path / "run"))
    film = str(tmp_path / "film.mp4")
    words = ["generate", run, "--text", "a red circle", "--frames", "4", "--samples", "2", "--guidance", "1"]
    assert main([*words, "--out", film]) == 0
    assert len(read_video(film)) == 4
    first = tmp_path / "first.png"
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(first)
    assert main(["generate", run, "--image", str(first), "--frames", "3", "--out", str(tmp_path / "strip.png")]) == 0
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (3 * 64 + 2 * 2, 64)
    on = str(tmp_path / "on.gif")
    assert main(["generate", run, "--video", film, "--frames", "5", "--out", on]) == 0
    assert len(read_video(on)) == 5
    edited = ["--edit", "0.5", "--text", "b", "--source", "a"]
    assert main(["generate", run, "--video", film, *edited, "--out", str(tmp_path / "edited.gif")]) == 0
    capsys.readouterr()
    for wrong, said in (
        (["--image", "a.png", "--video", "b.mp4"], "not both"),
        (["--edit", "0.5", "--text", "b"], "--edit needs --video"),
        (["--samples", "0"], "--samples must be at least 1"),
    ):
        assert main(["generate", run, "--out", on, *wrong]) == 1
        assert said in capsys.readouterr().err
    assert main(["generate", run, "--out", "film.avi"]) == 1
    assert "must end in .mp4, .gif or .png, got '.avi'" in capsys.readouterr().err


@pytest.mark.parametrize("past", [0, 1, 6])
def test_a_memory_that_starts_anew_reads_the_last_frames_encoded_again(past: int) -> None:
    world = tiny_world(text_dim=5)
    given = pictures(world, past) if past else None
    long = generate(world, frames=9, text="red", given=given, window=5, keep=3, generator=seeded())[0].numpy()
    generator, video = seeded(), np.zeros((0, *world.config.data.frame_shape), np.uint8) if given is None else given
    while len(video) < 9:
        seen = video if len(video) < 5 else video[-3:]
        more = min(5, len(seen) + 9 - len(video))
        new = generate(world, frames=more, text="red", given=seen if len(seen) else None, generator=generator)
        video = np.concatenate((video, new[0, len(seen) :].numpy()))
    assert np.array_equal(long, video)
    rolled = generate(world, frames=9, text="red", given=given, generator=seeded())[0].numpy()
    assert not np.array_equal(long, rolled)


def test_actions_go_with_their_frames_when_a_memory_starts_anew() -> None:
    world = tiny_world()
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 2)).astype(np.float32)
    given = pictures(world, 2)
    long = generate(world, frames=9, given=given, actions=actions, window=4, keep=2, generator=seeded())[0].numpy()
    generator, video = seeded(), given
    for first in range(0, 7, 2):
        count = min(4, 9 - first)
        part = actions[first : first + count - 1]
        new = generate(world, frames=count, given=video[-2:], actions=part, generator=generator)
        video = np.concatenate((video, new[0, 2:].numpy()))
    assert np.array_equal(long, video)


@pytest.mark.parametrize("options", [{"keep": 2}, {"window": 3, "keep": 3}, {"window": 1}, {"window": 4, "keep": 0}])
def test_a_memory_must_keep_some_frames_and_have_room_for_more(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1 and less than window"):
        generate(tiny_world(), frames=6, **options)  # type: ignore[arg-type]
