"""Released checkpoints in our own modules give the reference's numbers: golden vectors, and a literal implementation.

Where `WORLDFLOW_GOLDEN` names the folder of golden vectors they are compared with; everywhere else with
`naive_released`, the same mathematics in float64 NumPy loops, which agrees with the golden vectors itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_released import NaiveReleased, random_weights
from safetensors.torch import load_file, save_file
from test_naive_released import FOLDERS, GOLDEN, KINDS, SHAPES, TINY, needs_golden
from torch import Tensor

from worldflow import released, state_dicts
from worldflow.jacobi import Method
from worldflow.released import ReleasedModel, read_released

OURS = {"tarflow": "tarflow", "image": "starflow", "video": "starflow-v"}
METHODS = pytest.mark.parametrize("method", ["sequential", "jacobi"])


def options(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    named = {"patch_size": config["patch_size"]}
    return named | ({"denoiser_window": config["denoiser_window"]} if kind == "video" else {})


def tiny(kind: str) -> tuple[dict[str, Tensor], NaiveReleased]:
    """A state dict of random weights, and the literal model of the same."""
    weights = random_weights(kind, TINY[kind], seed=0)
    return {name: torch.from_numpy(value) for name, value in weights.items()}, NaiveReleased(kind, weights, TINY[kind])


def read(kind: str, weights: dict[str, Tensor], config: dict[str, Any], **more: Any) -> ReleasedModel:
    return read_released(weights, kind=OURS[kind], **options(kind, config), **more)  # pyright: ignore[reportArgumentType]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditions(kind: str, rows: int) -> dict[str, Tensor]:
    if kind == "tarflow":
        return {"label": torch.arange(rows) % TINY[kind]["num_classes"]}
    return {"text": normal(rows, 2, 3, seed=5)}


def guides(kind: str, rows: int) -> dict[str, Tensor]:
    return {} if kind == "tarflow" else {"text_uncond": normal(rows, 2, 3, seed=6)}


def row_of(told: dict[str, Tensor], row: int) -> dict[str, Any]:
    return {name: int(value[row]) if name == "label" else value[row].numpy() for name, value in told.items()}


# -- against golden vectors -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    config: dict[str, Any]
    guidance: float
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]

    def model(self, dtype: torch.dtype) -> ReleasedModel:
        return read(self.kind, self.weights, self.config, dtype=dtype)

    def told(self, dtype: torch.dtype, *, guided: bool = False) -> dict[str, Any]:
        names = ("text", "label", "text_uncond") if guided else ("text", "label")
        found = {name: self.tensors[name] for name in names if name in self.tensors}
        found = {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}
        return found | ({"guidance": self.guidance} if guided else {})


@pytest.fixture(params=list(FOLDERS))
def case(request: pytest.FixtureRequest) -> Case:
    assert GOLDEN is not None
    folder = Path(GOLDEN) / FOLDERS[request.param]
    record = json.loads((folder / "config.json").read_text())
    files = (load_file(folder / f"{name}.safetensors") for name in ("state_dict", "tensors"))
    return Case(request.param, record["config"], record["guidance"], *files)


# The golden vectors are float32: their own rounding is what remains in float64, and ours comes on top in float32.
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 3e-5)])


@needs_golden
@DTYPES
def test_density_loss_and_gradient_are_golden(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    golden = {name: value.to(dtype) for name, value in case.tensors.items() if value.is_floating_point()}
    x = golden["x"].requires_grad_()
    z, log_prob = case.model(dtype).flow(x, **case.told(dtype))
    wanted = golden["log_prob_per_frame" if case.kind == "video" else "log_prob"]
    torch.testing.assert_close(z, golden["z"], rtol=0, atol=tolerance)
    torch.testing.assert_close(log_prob, wanted, rtol=1e-6, atol=tolerance)
    torch.testing.assert_close(log_prob.sum(), wanted.sum(), rtol=1e-6, atol=tolerance)
    # Their loss is the NLL of a number without its constant.
    loss = -log_prob.sum() / x.numel() - 0.5 * np.log(2 * np.pi)
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(loss.detach(), golden["loss"].squeeze(), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, golden["loss_grad_x"], rtol=0, atol=1e-6)


@needs_golden
@DTYPES
@METHODS
def test_samples_are_golden(case: Case, method: Method, dtype: torch.dtype, tolerance: float) -> None:
    golden, flow = case.tensors, case.model(dtype).flow
    noise = golden["noise"].to(dtype)
    plain = flow.inverse(noise, method=method, tolerance=1e-8, **case.told(dtype))
    torch.testing.assert_close(plain, golden["reverse"].to(dtype), rtol=0, atol=tolerance)
    told = case.told(dtype, guided=True)
    guided = flow.inverse(noise, method=method, tolerance=1e-8, **told)
    torch.testing.assert_close(guided, golden["reverse_guided"].to(dtype), rtol=0, atol=tolerance)
    if case.kind == "video":
        first = golden["x"][:, :1].to(dtype)
        video = flow.inverse(noise, context=first, method=method, tolerance=1e-8, **told)
        torch.testing.assert_close(video, golden["i2v_guided"].to(dtype), rtol=0, atol=tolerance)


@needs_golden
@DTYPES
def test_score_of_the_denoiser_is_golden(dtype: torch.dtype, tolerance: float) -> None:
    assert GOLDEN is not None
    folder = Path(GOLDEN) / FOLDERS["video"]
    config = json.loads((folder / "config.json").read_text())["config"]
    golden = load_file(folder / "tensors.safetensors")
    model = read("video", load_file(folder / "state_dict.safetensors"), config, dtype=dtype)
    assert model.denoiser is not None
    x, text = golden["x"].to(dtype), golden["text"].to(dtype)
    score = model.denoiser(x, text=text)
    torch.testing.assert_close(score, golden["denoiser"].to(dtype), rtol=0, atol=tolerance)
    torch.testing.assert_close(model.denoiser.denoise(x, text=text), x - 0.3 * score)


# -- against loops, anywhere ------------------------------------------------------------------------------------------


@torch.no_grad()
@KINDS
def test_equals_the_literal_model(kind: str) -> None:
    weights, naive = tiny(kind)
    model = read(kind, weights, TINY[kind], dtype=torch.float64)
    x, told = normal(2, *SHAPES[kind], seed=1), conditions(kind, 2)
    z, log_prob = model.flow(x, **told)
    for row in range(2):
        expected_z, expected = naive.forward(x[row].numpy(), **row_of(told, row))
        np.testing.assert_allclose(z[row].numpy(), expected_z, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(log_prob[row].numpy(), expected, rtol=1e-9, atol=1e-9)
    if kind == "video":
        assert model.denoiser is not None
        score = model.denoiser(x, **told)
        for row in range(2):
            wanted = naive.score(x[row].numpy(), **row_of(told, row))
            np.testing.assert_allclose(score[row].numpy(), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@KINDS
@METHODS
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_samples_equal_the_literal_ones(kind: str, method: Method, guidance: float) -> None:
    weights, naive = tiny(kind)
    flow = read(kind, weights, TINY[kind], dtype=torch.float64).flow
    told = conditions(kind, 2) | (guides(kind, 2) if guidance else {})
    z, _ = flow(normal(2, *SHAPES[kind], seed=1), **conditions(kind, 2))
    noise = normal(*z.shape, seed=2)
    given = [None] if kind != "video" else [None, normal(2, 1, *SHAPES[kind][1:], seed=3)]
    for context in given:
        beside = {} if context is None else {"context": context}
        found = flow.inverse(noise, guidance=guidance, method=method, tolerance=1e-13, **told, **beside)
        for row in range(2):
            first = None if context is None else context[row].numpy()
            wanted = naive.sample(noise[row].numpy(), guidance=guidance, context=first, **row_of(told, row))
            # Sampling feeds rounding back through as many maps as there are tokens.
            np.testing.assert_allclose(found[row].numpy(), wanted, rtol=1e-7, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "video"])
def test_any_grid_of_frames(kind: str) -> None:
    # Positions are measured on the training grid, here 3 x 3; frames have other sides.
    weights, naive = tiny(kind)
    flow = read(kind, weights, TINY[kind], dtype=torch.float64).flow
    rows, columns = 6, 2
    x = normal(1, *SHAPES[kind][:-2], rows, columns, seed=4)
    told = conditions(kind, 1)
    z, log_prob = flow(x, **told)
    expected_z, expected = naive.forward(x[0].numpy(), **row_of(told, 0))
    np.testing.assert_allclose(z[0].numpy(), expected_z, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(log_prob[0].numpy(), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_images_without_text_have_two_axes() -> None:
    config = {**TINY["image"], "txt_size": 0, "cond_top_only": False}
    weights = random_weights("image", config, seed=0)
    naive = NaiveReleased("image", weights, config)
    flow = read("image", {name: torch.from_numpy(value) for name, value in weights.items()}, config).flow.double()
    x = normal(1, *SHAPES["image"], seed=1)
    z, _ = flow(x)
    np.testing.assert_allclose(z[0].numpy(), naive.forward(x[0].numpy())[0], rtol=1e-6, atol=1e-6)


# -- files ------------------------------------------------------------------------------------------------------------


def as_pth(weights: dict[str, Tensor], path: Path) -> Path:
    torch.save(weights, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def as_safetensors(weights: dict[str, Tensor], path: Path) -> Path:
    save_file(weights, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@torch.no_grad()
@KINDS
@pytest.mark.parametrize("write", [as_pth, as_safetensors])
def test_files_and_state_dicts_are_read_alike(
    kind: str, write: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path
) -> None:
    weights, _ = tiny(kind)
    path = write(weights, tmp_path / "released")
    named = options(kind, TINY[kind])
    one = read_released(path, kind=OURS[kind], **named)  # pyright: ignore[reportArgumentType]
    other = read(kind, weights, TINY[kind])
    x = normal(2, *SHAPES[kind], seed=1).float()
    told = {name: v.float() if v.is_floating_point() else v for name, v in conditions(kind, 2).items()}
    assert torch.equal(one.flow(x, **told)[0], other.flow(x, **told)[0])
    assert one.config == other.config
    assert not any(parameter.requires_grad for parameter in one.flow.parameters())


def test_weights_are_taken_over_not_copied() -> None:
    weights, _ = tiny("video")
    model = read("video", weights, TINY["video"])
    theirs = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    assert model.denoiser is not None
    for module in (model.flow, model.denoiser):
        assert all(parameter.untyped_storage().data_ptr() in theirs for parameter in module.parameters())
    narrow = read("video", weights, TINY["video"], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in narrow.flow.parameters()} == {torch.bfloat16}


def test_what_is_not_named_is_inferred() -> None:
    video = read("video", tiny("video")[0], TINY["video"]).config
    assert (video.pt_seq_len, video.txt_size, video.soft_clip, video.noise_std) == (3, 2, 4.0, 0.3)
    assert read("tarflow", tiny("tarflow")[0], TINY["tarflow"]).config.soft_clip is None
    # Without the dead weights sizes have to be named.
    weights = {name: value for name, value in tiny("video")[0].items() if not name.endswith(("var", "attn_mask"))}
    with pytest.raises(ValueError, match="has no 'var'"):
        read("video", weights, TINY["video"])
    named = read("video", weights, TINY["video"], pt_seq_len=3, txt_size=2)
    assert named.config == video


def test_the_notice_is_printed_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "_noticed", False)
    for _ in range(2):
        read("tarflow", tiny("tarflow")[0], TINY["tarflow"])
    assert capsys.readouterr().err.count("non-commercial research only") == 1


def test_says_what_is_wrong(tmp_path: Path) -> None:
    weights, _ = tiny("video")
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'starflowv'.*starflow-v"):
        read_released(weights, kind="starflowv")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"unknown option 'pt_seq'.*pt_seq_len"):
        read("video", weights, TINY["video"], pt_seq=3)
    with pytest.raises(ValueError, match=r"it lacks blocks.0.attn_blocks.0.attention.qkv.bias$"):
        lacking = {name: w for name, w in weights.items() if name != "blocks.0.attn_blocks.0.attention.qkv.bias"}
        read("video", lacking, TINY["video"])
    with pytest.raises(ValueError, match=r"it has the unknown blocks.0.stranger$"):
        read("video", weights | {"blocks.0.stranger": torch.zeros(1)}, TINY["video"])
    with pytest.raises(ValueError, match=r"blocks.1.final_norm.weight must have shape \(128,\), got \(64,\)"):
        read("video", weights | {"blocks.1.final_norm.weight": torch.zeros(64)}, TINY["video"])
    with pytest.raises(ValueError, match=r"no tensor blocks.0.\*, so it is no starflow-v; its first names are \['a'\]"):
        read("video", {"a": torch.zeros(1)}, TINY["video"])
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_released(tmp_path / "none.pth", kind="tarflow")
    for name in ("damaged.pth", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match="cannot read"):
            read_released(tmp_path / name, kind="tarflow")
    torch.save({"model": weights}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="plain state dict"):
        read_released(tmp_path / "nested.pth", kind="starflow-v")
    with pytest.raises(ValueError, match="patch_size must be above 0, got 0"):
        read_released(weights, kind="starflow-v", patch_size=0)

    flow = read("video", weights, TINY["video"]).flow
    x, text = torch.zeros(1, *SHAPES["video"]), torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, time, channel, row, column\) with 2 channels"):
        flow(x[0], text=text)
    with pytest.raises(ValueError, match="starflow-v has no classes; give text"):
        flow(x, text=text, label=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="guidance needs text_without"):
        flow.inverse(x, text=text, guidance=1.0)
    tarflow = read("tarflow", tiny("tarflow")[0], TINY["tarflow"]).flow
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 2, 4, 4\), got \(1, 2, 4, 6\)"):
        tarflow(torch.zeros(1, 2, 4, 6))
    with pytest.raises(ValueError, match="reads no text"):
        tarflow(torch.zeros(1, 2, 4, 4), text=text)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_the_system_will_not_map_says_what_to_do(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"large{suffix}"
    path.write_bytes(b"0" * 1000)

    def refuses(*_: Any, **__: Any) -> Any:
        raise RuntimeError("unable to mmap 27000000000 bytes from file <large>: Cannot allocate memory (12)")

    monkeypatch.setattr(state_dicts, "safe_open", refuses)
    monkeypatch.setattr(torch, "load", refuses)
    with pytest.raises(MemoryError, match=r"will not map .*large.*overcommit_memory"):
        read_released(path, kind="starflow")
