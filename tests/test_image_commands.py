"""Images come from files and folders, are learned, and are drawn again by commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_latent_images import SPEC, captions, generator, halves

from worldflow import cli, image_commands
from worldflow.image_files import read_images, write_images
from worldflow.images import ImageFlow, LatentImageFlow, load_images

SMALL = "--levels 5 --patch-size 2 --latent-dim 2 --width 32 --layers 2 --minutes 0.01 --batch-size 8 --json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twenty images of two classes."""
    data = halves(20)
    return write_images(data.images, tmp_path / "halves.npz", levels=5, columns=5, labels=data.labels)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    status = cli.main(list(words))
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


def failure(capsys: pytest.CaptureFixture[str], *words: str, status: int = 1) -> str:
    assert cli.main(list(words)) == status
    return capsys.readouterr().err


def test_codes_are_learned_and_drawn(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "flow.safetensors")
    told = run(capsys, "images", "train", str(file), "--out", out, *SMALL.split())
    model = load_images(out)
    assert isinstance(model, LatentImageFlow)
    assert (told["images"], told["classes"], model.config.num_classes) == (18, "0 0, 1 1", 2)
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert told["validation_bits_per_dim"] > 0
    words = ["--samples", "3", "--guidance", "1", "--rule", "extrapolate", "--denoise", "tweedie", "--json"]
    drawn = tmp_path / "drawn.npz"
    assert run(capsys, "images", "sample", out, "--out", str(drawn), *words)["drawn"] == 6
    found = read_images(drawn)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    rule = image_commands.RULES["extrapolate"]
    expected = model.sample(found.labels, guidance=1.0, rule=rule, denoise=True, generator=generator())
    assert torch.equal(found.images, expected)
    sheet = tmp_path / "drawn.png"
    assert run(capsys, "images", "sample", out, "--out", str(sheet), "--classes", "1", "--json")["drawn"] == 8
    with Image.open(sheet) as picture:
        assert picture.width > 7 * picture.height  # one row of eight
    assert "this flow reads no text" in failure(capsys, "images", "sample", out, "--out", "a.png", "--text", "one")
    assert "--out must end in .npz or .png" in failure(capsys, "images", "sample", out, "--out", "a.gif")
    assert "labels must be from 0 to 1" in failure(capsys, "images", "sample", out, "--out", "a.png", "--classes", "2")


def test_pixels_are_learned_without_classes(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "flow.safetensors")
    told = run(
        capsys, "images", "train", str(file), "--out", out, "--space", "pixels", "--unconditional", *SMALL.split()
    )
    model = load_images(out)
    assert isinstance(model, ImageFlow)
    assert model.config.num_classes == 0
    assert "classes" not in told
    assert told["validation_bits_per_dim"] > 0
    assert run(capsys, "images", "sample", out, "--out", str(tmp_path / "d.npz"), "--json")["drawn"] == 8
    assert "this flow has no classes" in failure(capsys, "images", "sample", out, "--out", "a.png", "--classes", "1")


def test_texts_are_learned_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = halves(20)
    texts = captions(data.labels)
    file = tmp_path / "halves.npz"
    np.savez(file, images=data.images.numpy(), captions=np.array(["left", "top"])[data.labels.numpy()])

    def embedded(found: tuple[str, ...], *, encoder: str, words: int) -> Any:
        assert found == tuple(("left", "top")[label] for label in data.labels.tolist())
        assert (encoder, words) == ("somewhere", SPEC.words)
        return texts

    class Reader:
        def __init__(self, spec: Any, encoder: str | None) -> None:
            assert (spec, encoder) == (SPEC, "here")

        def __call__(self, prompts: tuple[str, ...]) -> Any:
            self.tokens = texts.texts[[("left", "top").index(prompt) for prompt in prompts]]
            return self

    monkeypatch.setattr(image_commands, "embed_captions", embedded)
    monkeypatch.setattr(image_commands, "encoder_for", Reader)
    out = str(tmp_path / "flow.safetensors")
    words = ["--text", "somewhere", "--text-words", str(SPEC.words)]
    run(capsys, "images", "train", str(file), "--out", out, *words, *SMALL.split())
    model = load_images(out)
    assert isinstance(model, LatentImageFlow)
    assert model.config.text == SPEC
    drawn = tmp_path / "drawn.npz"
    asked = ["--text", "top", "left", "--samples", "2", "--encoder", "here", "--guidance", "1", "--json"]
    assert run(capsys, "images", "sample", out, "--out", str(drawn), *asked)["drawn"] == 4
    text = texts.texts[[1, 1, 0, 0]]
    assert torch.equal(read_images(drawn).images, model.sample(text=text, guidance=1.0, generator=generator()))


def test_folders_are_classes(tmp_path: Path) -> None:
    values = {"cat/b.png": 10, "cat/a.png": 20, "ant/c.png": 30}
    for name, value in values.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 3, 3), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    found = read_images(tmp_path)
    assert found.classes == ("ant", "cat")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1]
    assert found.images.shape == (3, 2, 3, 3)
    assert found.images[:, 0, 0, 0].tolist() == [30, 20, 10]
    flat = read_images(tmp_path / "cat")
    assert flat.labels is None
    assert flat.classes == ()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "cat" / "z.png")
    with pytest.raises(ValueError, match=r"one size and kind, got \(2, 3, 3\) in c.png and \(2, 3, 1\) in z.png"):
        read_images(tmp_path)
    (tmp_path / "cat" / "z.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"z\.png is not a readable picture"):
        read_images(tmp_path / "cat")
    (tmp_path / "cat" / "z.png").rename(tmp_path / "z.png")
    with pytest.raises(ValueError, match="pictures beside subfolders"):
        read_images(tmp_path)


def test_gray_images_need_no_channel_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.ones((2, 3, 4), np.uint8))
    found = read_images(tmp_path / "a.npz")
    assert found.images.shape == (2, 3, 4, 1)
    assert (found.labels, found.captions, found.classes) == (None, None, ())


def test_mistakes_are_named(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"name an \.npz file or a folder of pictures"):
        read_images(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        read_images(tmp_path / "empty")
    (tmp_path / "b.npz").write_text("text")
    with pytest.raises(ValueError, match=r"name an \.npz file with an array `images`"):
        read_images(tmp_path / "b.npz")
    ones = np.ones((2, 3, 4), np.uint8)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"labels": np.zeros(2, int)}, "must hold an array `images`, got labels"),
        ({"images": ones.astype(float)}, "whole numbers of shape"),
        ({"images": ones, "labels": np.zeros(3, int)}, r"labels must be one for each of 2 images, got int64 \(3,\)"),
        ({"images": ones, "labels": np.array([-1, 0])}, "labels must be 0 or more, got -1"),
        ({"images": ones, "captions": np.zeros(2)}, "captions must be one for each"),
    ]
    for arrays, message in cases:
        np.savez(tmp_path / "c.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            read_images(tmp_path / "c.npz")
    train = ("images", "train", str(file), "--out", str(tmp_path / "out"))
    assert "has no captions, but --text is given" in failure(capsys, *train, "--text", "somewhere")
    both = failure(capsys, *train, "--text", "some", "--unconditional", status=2)
    assert "leave --space" in both  # in a box, whose lines break where they want
    assert "--out must name a file" in failure(capsys, *train[:-1], str(tmp_path))
    assert "held_out must be between 0 and 1" in failure(capsys, *train, "--held-out", "1", status=2)
    assert "too few to hold 0.001 of them out" in failure(capsys, *train, "--held-out", "0.001")
    with pytest.raises(ValueError, match=r"written as \.npz or \.png"):
        write_images(halves(2).images, tmp_path / "a.gif", levels=5, columns=2)
