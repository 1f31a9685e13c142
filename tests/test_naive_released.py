"""The literal released models agree with the golden vectors, where they are at hand, and with themselves anywhere.

Set WORLDFLOW_GOLDEN to the folder that holds `tarflow_tiny`, `starflow_image_tiny` and `starflow_v_tiny`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive_released import NaiveReleased, random_weights
from safetensors.numpy import load_file

FOLDERS = {"tarflow": "tarflow_tiny", "image": "starflow_image_tiny", "video": "starflow_v_tiny"}
GOLDEN = os.environ.get("WORLDFLOW_GOLDEN")
needs_golden = pytest.mark.skipif(GOLDEN is None, reason="WORLDFLOW_GOLDEN names no folder of golden vectors")

ROTARY = {"rope": True, "sos": True, "cond_top_only": True, "use_softplus": True, "use_final_norm": True}
TINY: dict[str, dict[str, Any]] = {
    "tarflow": {
        "in_channels": 2,
        "img_size": 4,
        "patch_size": 2,
        "channels": 64,
        "num_blocks": 3,
        "layers_per_block": 1,
        "num_classes": 3,
    },
    "image": {
        **ROTARY,
        "patch_size": 2,
        "in_channels": 2,
        "img_size": 4,
        "pt_seq_len": 3,
        "channels": 64,
        "num_blocks": 2,
        "layers_per_block": [1, 1],
        "soft_clip": 4,
        "txt_size": 2,
        "txt_dim": 3,
        "temporal_causal": 0,
    },
    "video": {
        **ROTARY,
        "patch_size": 1,
        "in_channels": 2,
        "img_size": 4,
        "pt_seq_len": 3,
        "channels": 64,
        "top_block_channels": 128,
        "num_blocks": 2,
        "layers_per_block": [1, 1],
        "soft_clip": 4,
        "txt_size": 2,
        "txt_dim": 3,
        "temporal_causal": 2,
        "shallow_block_local": True,
        "learnable_self_denoiser": True,
        "conditional_denoiser": True,
        "denoiser_window": 2,
    },
}
SHAPES = {"tarflow": (2, 4, 4), "image": (2, 4, 4), "video": (3, 2, 1, 2)}  # of x
KINDS = pytest.mark.parametrize("kind", list(TINY))


def assert_close(actual: Any, golden: np.ndarray) -> None:
    """Within a few float32 roundings, in which the golden vectors were computed (worst seen: 4e-6, 2e-7 relative)."""
    np.testing.assert_allclose(np.asarray(actual), golden, rtol=5e-7, atol=5e-6)


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A released model of random weights and what the reference computed with it."""

    model: NaiveReleased
    tensors: dict[str, np.ndarray]
    guidance: float

    @property
    def rows(self) -> range:
        return range(len(self.tensors["x"]))

    def told(self, row: int, *, guided: bool = False) -> dict[str, Any]:
        """Text or label of a row, and the unconditional text and the weight where guided."""
        told: dict[str, Any] = {"guidance": self.guidance} if guided else {}
        if "label" in self.tensors:
            return {**told, "label": int(self.tensors["label"][row])}
        if guided:
            told["text_uncond"] = self.tensors["text_uncond"][row]
        return {**told, "text": self.tensors["text"][row]}


@pytest.fixture(scope="module", params=list(FOLDERS))
def golden(request: pytest.FixtureRequest) -> Golden:
    assert GOLDEN is not None
    folder = Path(GOLDEN) / FOLDERS[request.param]
    told = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "state_dict.safetensors")
    return Golden(
        model=NaiveReleased(told["kind"], weights, told["config"]),
        tensors=load_file(folder / "tensors.safetensors"),
        guidance=told["guidance"],
    )


@needs_golden
def test_density_is_the_golden_one(golden: Golden) -> None:
    out = [golden.model.forward(golden.tensors["x"][row], **golden.told(row)) for row in golden.rows]
    name = "log_prob_per_frame" if golden.model.kind == "video" else "log_prob"
    assert_close([z for z, _ in out], golden.tensors["z"])
    assert_close([log_prob for _, log_prob in out], golden.tensors[name])


@needs_golden
def test_batch_mean_of_the_loss_is_the_golden_one(golden: Golden) -> None:
    losses = [golden.model.loss(golden.tensors["x"][row], **golden.told(row)) for row in golden.rows]
    assert_close(np.mean(losses), golden.tensors["loss"][0])


@needs_golden
def test_golden_gradient_is_the_slope_of_the_loss(golden: Golden) -> None:
    x = golden.tensors["x"].astype(np.float64)
    rng = np.random.default_rng(0)
    for _ in range(6):
        row, *entry = (int(rng.integers(size)) for size in x.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = x[row].copy()
            moved[tuple(entry)] += step
            ends.append(golden.model.loss(moved, **golden.told(row)))
        slope = (ends[0] - ends[1]) / 2e-5 / len(x)
        assert_close(slope, golden.tensors["loss_grad_x"][(row, *entry)])


@needs_golden
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_samples_are_the_golden_ones(golden: Golden, guided: bool) -> None:
    noise = golden.tensors["noise"]
    x = [golden.model.sample(noise[row], **golden.told(row, guided=guided)) for row in golden.rows]
    assert_close(x, golden.tensors["reverse_guided" if guided else "reverse"])


@needs_golden
def test_videos_from_an_image_are_the_golden_ones(golden: Golden) -> None:
    if golden.model.kind != "video":
        return
    x = golden.tensors["x"]
    for row in golden.rows:
        told = golden.told(row, guided=True)
        video = golden.model.sample(golden.tensors["noise"][row], context=x[row][:1], **told)
        assert_close(video, golden.tensors["i2v_guided"][row])


@needs_golden
def test_scores_are_the_golden_ones(golden: Golden) -> None:
    if golden.model.kind != "video":
        return
    scores = [golden.model.score(golden.tensors["x"][row], **golden.told(row)) for row in golden.rows]
    assert_close(scores, golden.tensors["denoiser"])


@needs_golden
def test_random_weights_look_like_the_golden_ones(golden: Golden) -> None:
    ours = random_weights(golden.model.kind, golden.model.config, 0)
    theirs = golden.model.weights
    assert {name: array.shape for name, array in ours.items()} == {name: array.shape for name, array in theirs.items()}
    for name, array in ours.items():
        if array.size > 1000:  # the standard deviation of so many is known to 4 % (4.5 sigma bound: 10 %)
            np.testing.assert_allclose(array.std(), theirs[name].std(), rtol=0.1, err_msg=name)


def tiny_model(kind: str) -> NaiveReleased:
    return NaiveReleased(kind, random_weights(kind, TINY[kind], 0), TINY[kind])


def told(kind: str, *, seed: int = 1) -> dict[str, Any]:
    if kind == "tarflow":
        return {"label": seed % 3}
    return {"text": np.random.default_rng(seed).standard_normal((2, 3))}


def normal(kind: str, *, seed: int = 2) -> np.ndarray:
    """Noise in the layout of z."""
    shape = (4, 8) if kind == "tarflow" else SHAPES[kind]
    return np.random.default_rng(seed).standard_normal(shape)


@KINDS
def test_density_of_a_sample_reads_its_noise_back(kind: str) -> None:
    model = tiny_model(kind)
    x = model.sample(normal(kind), **told(kind))
    z, log_prob = model.forward(x, **told(kind))
    np.testing.assert_allclose(z, normal(kind), atol=1e-12)
    assert x.shape == SHAPES[kind]
    assert log_prob.shape == ((3,) if kind == "video" else ())
    np.testing.assert_allclose(
        model.loss(x, **told(kind)), -log_prob.sum() / x.size - 0.5 * math.log(2 * math.pi), rtol=1e-12
    )


@KINDS
def test_log_prob_is_the_change_of_variables(kind: str) -> None:
    """Central differences err by 1e-10 in an entry of the Jacobian: a step of 1e-5, squared."""
    model = tiny_model(kind)
    x = np.random.default_rng(3).standard_normal(SHAPES[kind])
    z, log_prob = model.forward(x, **told(kind))
    jacobian = np.empty((x.size, x.size))
    for column, entry in enumerate(np.ndindex(x.shape)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = x.copy()
            moved[entry] += step
            ends.append(model.forward(moved, **told(kind))[0].ravel())
        jacobian[:, column] = (ends[0] - ends[1]) / 2e-5
    num_frames = 3 if kind == "video" else 1
    size = x.size // num_frames
    for t, frame in enumerate(z.reshape(num_frames, size)):
        here = slice(t * size, (t + 1) * size)
        np.testing.assert_array_equal(jacobian[here, (t + 1) * size :], 0)  # later frames are not seen
        _, log_det = np.linalg.slogdet(jacobian[here, here])
        expected = -0.5 * (frame**2).sum() - 0.5 * size * math.log(2 * math.pi) + log_det
        np.testing.assert_allclose(np.atleast_1d(log_prob)[t], expected, rtol=1e-7)


@KINDS
def test_guidance_towards_where_it_comes_from_changes_nothing(kind: str) -> None:
    """The unconditional branch told the same is the conditional one; told something else it is not."""
    model = tiny_model(kind)
    plain = model.sample(normal(kind)) if kind == "tarflow" else model.sample(normal(kind), **told(kind))
    same = {} if kind == "tarflow" else {**told(kind), "text_uncond": told(kind)["text"]}
    np.testing.assert_allclose(model.sample(normal(kind), guidance=2.0, **same), plain, atol=1e-12)
    other = told(kind) if kind == "tarflow" else {**told(kind), "text_uncond": told(kind, seed=5)["text"]}
    guided = model.sample(normal(kind), guidance=2.0, **other)
    assert np.abs(guided - model.sample(normal(kind), **told(kind))).max() > 1e-3


def test_a_video_keeps_its_context_and_reads_the_noise_of_later_frames_back() -> None:
    model = tiny_model("video")
    context = np.random.default_rng(4).standard_normal((2, *SHAPES["video"][1:]))
    x = model.sample(normal("video"), context=context, **told("video"))
    z, _ = model.forward(x, **told("video"))
    np.testing.assert_array_equal(x[:2], context)
    np.testing.assert_allclose(z[2], normal("video")[2], atol=1e-12)
    given = np.concatenate([model.forward(context, **told("video"))[0], normal("video")[2:]])
    np.testing.assert_allclose(model.sample(given, **told("video")), x, atol=1e-12)


def test_a_layer_of_the_denoiser_sees_one_frame_ahead_and_one_back() -> None:
    """A = 2 and G = 2: a frame sees itself and its neighbours. Every further layer looks one frame further ahead."""
    weights = random_weights("video", TINY["video"], 0)
    later = tuple(f"learnable_self_denoiser.attn_blocks.{layer}." for layer in range(1, 8))
    shallow = NaiveReleased("video", {k: v for k, v in weights.items() if not k.startswith(later)}, TINY["video"])
    x = np.random.default_rng(3).standard_normal(SHAPES["video"])
    score = shallow.score(x, **told("video"))
    np.testing.assert_array_equal(shallow.denoise(x, **told("video")), x - 0.3 * score)
    for changed, seen_by in enumerate([{0, 1}, {0, 1, 2}, {1, 2}]):
        moved = x.copy()
        moved[changed] += 1
        other = shallow.score(moved, **told("video"))
        assert {t for t in range(3) if np.any(other[t] != score[t])} == seen_by


def test_an_odd_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        NaiveReleased("flow", {}, {})
    with pytest.raises(ValueError, match="seq_order"):
        NaiveReleased("image", {}, {**TINY["image"], "seq_order": "R2L"})
    with pytest.raises(ValueError, match="even number"):
        NaiveReleased("video", {}, {**TINY["video"], "num_blocks": 3})
    with pytest.raises(ValueError, match="reads text"):
        tiny_model("image").forward(np.zeros(SHAPES["image"]))
