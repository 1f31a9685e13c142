"""On a CUDA GPU, where there is one: recorded work is the work, and everything else goes on as on a CPU."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_world, write_dataset
from torch import Tensor, nn

import worldflow as wf
from worldflow.captured import Captured, captured_or_none
from worldflow.envs.learned import LearnedVectorEnv
from worldflow.fit import FLOW, DrawnLoss, fit
from worldflow.log import NoLog
from worldflow.train import train
from worldflow.world import WorldModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
CUDA = "cuda"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_gpu(**options: Any) -> WorldModel:
    return tiny_world(dtype=torch.float64, **options).to(CUDA)


def actions(world: WorldModel, rows: int, *, seed: int = 7) -> Tensor:
    return torch.rand(rows, *world.config.data.action.shape, generator=seeded(seed)) - 0.5


def test_what_is_recorded_computes_anew_and_refuses_other_shapes() -> None:
    weight = torch.tensor(2.0, device=CUDA)
    recorded = Captured(lambda given: {"twice": weight * given["x"]}, {"x": torch.zeros(3, device=CUDA)})
    for k in (1.0, 5.0):
        assert recorded({"x": torch.full((3,), k, device=CUDA)})["twice"].tolist() == [2 * k] * 3
    weight.fill_(3.0)
    assert recorded({"x": torch.ones(3, device=CUDA)})["twice"].tolist() == [3.0] * 3
    with pytest.raises(ValueError, match=r"x was recorded with shape \(3,\), got \(4,\)"):
        recorded({"x": torch.ones(4, device=CUDA)})


def test_what_cannot_be_recorded_is_told() -> None:
    def reads_a_number(given: Mapping[str, Tensor]) -> Tensor:
        return given["x"] * (2.0 if float(given["x"].sum()) > 0 else 3.0)

    with pytest.warns(UserWarning, match="a number cannot be recorded as a CUDA graph"):
        recorded = captured_or_none(reads_a_number, {"x": torch.ones(1, device=CUDA)}, what="a number")
    assert recorded is None
    assert reads_a_number({"x": -torch.ones(1, device=CUDA)}).tolist() == [-3.0]  # the GPU goes on


@pytest.mark.parametrize("shown", [True, False])
def test_recorded_steps_are_the_steps(shown: bool) -> None:
    world = on_gpu(shown=shown, shallow=False)
    fast = copy.deepcopy(world)
    fast.compile_step(4)
    state, other = world.begin(3), fast.begin(3)
    for k in range(5):
        plain, state = world.step(state, actions(world, 3, seed=k), generator=seeded(k), method="sequential")
        quick, after = fast.step(other, actions(world, 3, seed=k), generator=seeded(k))
        before, other = other, after
        kept = before.latents.clone()
        for one, two in ((plain, quick), (plain.log_prob, quick.log_prob), (state, other)):
            for field in fields(one):
                left, right = getattr(one, field.name), getattr(two, field.name)
                if isinstance(left, Tensor):
                    torch.testing.assert_close(left.double(), right.double(), rtol=0, atol=1e-9, msg=field.name)
        fast.step(other, actions(world, 3, seed=9), generator=seeded(9))
        assert torch.equal(before.latents, kept)  # states are values: later steps write into none


def test_a_world_that_moves_forgets_recorded_steps() -> None:
    world = on_gpu(shallow=False)
    world.compile_step(2)
    assert world.to(CUDA).compiled(2) is not None
    assert world.to("cpu").compiled(2) is None


def test_the_same_seeds_make_the_same_world_on_both(tmp_path: Path) -> None:
    world = tiny_world(shallow=False)
    there = copy.deepcopy(world).to(CUDA)
    found = []
    for one in (world, there):
        envs = LearnedVectorEnv(one, num_envs=2, horizon=20, termination="off")
        frames, _ = envs.reset(seed=3)
        envs.action_space.seed(0)
        seen = [frames] + [envs.step(envs.action_space.sample())[0] for _ in range(8)]
        found.append(np.stack(seen).astype(int))
        envs.close()
    assert np.abs(found[0] - found[1]).max() <= 2  # gray levels: sums in another order


class Line(nn.Module):
    """A matrix that Muon learns and a vector that AdamW learns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        self.inner = nn.ModuleDict({"blocks": nn.ModuleList([layer])})
        self.apply_layer: Callable[[Tensor], Tensor] = layer.forward

    def loss(self, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.apply_layer(given["x"]) - given["y"]).square().mean()
        return loss, {FLOW.headline: loss.detach()}


def fitted(device: str, *, wrapped: Callable[[Any], Any] = lambda loss: loss, start: Any = None) -> tuple[Line, Any]:
    generator = seeded(1)
    target = torch.randn(8, 8, generator=seeded(2))
    module, states = Line().to(device), []

    def draw() -> dict[str, Tensor]:
        x = torch.randn(16, 8, generator=generator)
        return {"x": x.to(device), "y": (x @ target).to(device)}

    fit(
        module,
        wrapped(DrawnLoss(draw, module.loss)),
        NoLog(),
        stage=FLOW,
        steps=30,
        minutes=None,
        learning_rate=1e-2,
        weight_decay=0.1,
        clip_norm=0.5,
        items=1,
        device=torch.device(device),
        start=start,
        look=None,
        look_every=math.inf,
        save=states.append,
        save_every=math.inf,
        progress=False,
    )
    return module, states[-1]


def test_recorded_training_is_training() -> None:
    recorded, state = fitted(CUDA)
    plain, _ = fitted(CUDA, wrapped=lambda loss: lambda: loss())
    for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)  # products in bf16
    for one, other in zip(recorded.parameters(), Line().to(CUDA).parameters(), strict=True):
        assert (one - other).abs().max() > 0.01
    assert all(isinstance(group["lr"], float) for saved in state.optimizers for group in saved["param_groups"])


def test_a_world_is_trained_resumed_and_read_without_a_gpu(tmp_path: Path) -> None:
    episodes = write_dataset(tmp_path / "data", lengths=[30] * 6)
    options: dict[str, Any] = {"preset": "tiny", "codec_steps": 30, "batch": 4, "length": 24, "symmetry": "mirror"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all of it is recorded
        world = train(episodes, out=tmp_path / "run", progress=False, steps=30, **options)
    assert world.device.type == CUDA
    again = train(episodes, out=tmp_path / "run", progress=False, steps=40, resume=True, **options)
    assert not torch.equal(again.flow.deep.proj_out.weight, world.flow.deep.proj_out.weight)
    assert all(bool(p.isfinite().all()) for p in again.parameters())
    assert wf.load(tmp_path / "run", device="cpu").device.type == "cpu"
