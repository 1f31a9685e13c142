"""TARFlow is an exact density with classes: Jacobians, inverses, guidance by its definition, an integral, gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import randomize
from torch import Tensor

from worldflow.autoregressive import AffineBlock
from worldflow.guidance import Rule, extrapolate, sharpen
from worldflow.jacobi import Method
from worldflow.tarflow import TarFlow, TarFlowConfig

LAYOUTS: dict[str, dict[str, Any]] = {
    "classes": {},
    "no classes": {"num_classes": 0},
    "one block": {"layers": (2,)},
    "three blocks": {"layers": (1, 2, 1)},
    "wide grid": {"grid": (1, 5), "latent_dim": 1},
}
CONFIG = TarFlowConfig(latent_dim=2, grid=(2, 3), layers=(1, 2), width=32, head_dim=16, num_classes=3)


def tiny(*, scale: float = 0.7, **options: Any) -> TarFlow:
    flow = TarFlow(replace(CONFIG, **options)).double().eval()
    randomize(flow, scale=scale)
    with torch.no_grad():
        for block in flow.blocks:
            assert isinstance(block, AffineBlock)
            block.proj_out.weight.mul_(0.5)  # there is no last norm: outputs would be large, and scales exp of them
    return flow


@pytest.fixture(params=LAYOUTS.values(), ids=list(LAYOUTS))
def flow(request: pytest.FixtureRequest) -> TarFlow:
    return tiny(**request.param)


def tokens(flow: TarFlow, batch: int, *, seed: int = 1) -> Tensor:
    rows, columns = flow.config.grid
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, rows * columns, flow.config.latent_dim, generator=generator, dtype=torch.float64)


def labels(flow: TarFlow, *classes: int) -> Tensor | None:
    return torch.tensor(classes) if flow.config.num_classes else None


def blocks(flow: TarFlow) -> list[AffineBlock]:
    return [block for block in flow.blocks if isinstance(block, AffineBlock)]


@torch.no_grad()
def test_maps_are_far_from_the_identity(flow: TarFlow) -> None:
    # Otherwise the tests below would prove little.
    x = tokens(flow, 4)
    out = flow(x, label=labels(flow, 0, 1, 2, -1))
    assert (out.z - x).abs().mean() > 0.2
    assert out.log_det.abs().mean() > 0.1


def test_log_det_is_that_of_the_jacobian(flow: TarFlow) -> None:
    x = tokens(flow, 1)
    for chosen in (2, -1):
        label = labels(flow, chosen)
        out = flow(x, label=label)
        jacobian = torch.autograd.functional.jacobian(lambda v, label=label: flow(v, label=label).z, x)
        assert isinstance(jacobian, Tensor)
        sign, log_det = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel()))
        assert sign == 1
        # float64, a determinant of at most a dozen rows.
        torch.testing.assert_close(out.log_det.sum(), log_det, rtol=0, atol=1e-10)
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(out.z).sum()
        torch.testing.assert_close(out.log_prob[0], normal + log_det, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("method", ["sequential", "jacobi"])
def test_inverse(flow: TarFlow, method: Method) -> None:
    x, label = tokens(flow, 4), labels(flow, 0, 1, 2, -1)
    found = flow.inverse(flow(x, label=label).z, label=label, method=method, tolerance=1e-13)
    # float64 through a few maps that stretch at most a hundredfold each.
    torch.testing.assert_close(found, x, rtol=0, atol=1e-9)


@torch.no_grad()
def test_blocks_alternate_and_the_first_token_keeps_its_value() -> None:
    flow = tiny()
    x = tokens(flow, 2)
    for i, block in enumerate(blocks(flow)):
        z, log_det = block(x, label=torch.tensor([0, 1]))
        kept = -1 if i % 2 else 0
        assert torch.equal(z[:, kept], x[:, kept])
        assert not log_det[:, kept].any()
        assert (z - x).abs().amax(-1).ne(0).sum() == 2 * 5


def test_a_token_reads_those_before_it_in_order() -> None:
    flow = tiny()
    x = tokens(flow, 1)
    for i, block in enumerate(blocks(flow)):
        jacobian = torch.autograd.functional.jacobian(lambda v, block=block: block(v)[0], x)
        assert isinstance(jacobian, Tensor)
        reach = jacobian[0, :, :, 0].abs().sum((1, 3)) > 0  # (token of z, token of x)
        lower = torch.ones(6, 6, dtype=torch.bool).tril()
        assert torch.equal(reach, lower.T if i % 2 else lower)


@torch.no_grad()
def test_the_network_reads_tokens_at_their_own_slots() -> None:
    # Token j + 1 follows from a causal transformer over tokens 0 .. j, and from nothing in front of them.
    flow = tiny()
    x = tokens(flow, 2)
    for block in blocks(flow):
        ordered = x.flip(1) if block.is_reversed else x
        positions = block.token_positions.flip(0) if block.is_reversed else block.token_positions
        assert block.classes is not None
        slots = block.proj_in(ordered[:, :-1]) + positions[:-1] + block.classes[1]
        hidden, _ = block.transformer(slots, None)
        a, mu = block.proj_out(hidden).chunk(2, dim=-1)
        z, _ = block(x, label=torch.tensor([1, 1]))
        found = (z.flip(1) if block.is_reversed else z)[:, 1:]
        torch.testing.assert_close(found, (ordered[:, 1:] - mu) / a.exp(), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_no_class_is_the_mean_of_all() -> None:
    flow = tiny()
    x = tokens(flow, 2)
    hidden, none = flow(x, label=torch.tensor([-1, -1])), flow(x)
    torch.testing.assert_close(hidden.log_prob, none.log_prob, rtol=1e-13, atol=1e-13)
    mean = tiny()
    for block in blocks(mean):
        assert block.classes is not None
        block.classes.copy_(block.classes.mean(0).expand_as(block.classes))
    torch.testing.assert_close(mean(x, label=torch.tensor([0, 2])).log_prob, none.log_prob, rtol=1e-12, atol=1e-12)
    assert (flow(x, label=torch.tensor([0, 2])).log_prob - none.log_prob).abs().min() > 1e-2


@torch.no_grad()
def test_rows_do_not_meet() -> None:
    flow = tiny()
    x, label = tokens(flow, 3), torch.tensor([2, -1, 0])
    together = flow(x, label=label).log_prob
    for i in range(3):
        alone = flow(x[i : i + 1], label=label[i : i + 1]).log_prob[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("method", ["sequential", "jacobi"])
@pytest.mark.parametrize("rule", [extrapolate, sharpen])
@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_guidance_token_by_token(weight: float, rule: Rule, method: Method) -> None:
    flow = tiny(scale=0.5)
    z, label = tokens(flow, 2), torch.tensor([0, 2])
    found = flow.inverse(z, label=label, guidance=weight, rule=rule, method=method, tolerance=1e-13)
    x = z
    for block in reversed(blocks(flow)):
        noise = x.flip(1) if block.is_reversed else x
        solved = torch.zeros_like(noise)
        for j in range(noise.shape[1]):
            # Mean and log-scale of token j, read off the forward map at x_j = 0 and 1: z = (x - mu) / sigma.
            pair = []
            for chosen in (label, torch.full_like(label, -1)):
                ends = []
                for value in (0.0, 1.0):
                    solved[:, j] = value
                    z_j, _ = block(solved.flip(1) if block.is_reversed else solved, label=chosen)
                    ends.append((z_j.flip(1) if block.is_reversed else z_j)[:, j])
                sigma = 1 / (ends[1] - ends[0])
                pair.append((-ends[0] * sigma, sigma))
            mu, sigma = rule(pair[0], pair[1], weight)
            solved[:, j] = mu + sigma * noise[:, j]
        x = solved.flip(1) if block.is_reversed else solved
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_integral_is_one() -> None:
    flow = tiny(grid=(1, 2), latent_dim=1, scale=0.5)
    line = torch.linspace(-12, 12, 193, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)[:, :, None]
    for label in (0, -1):
        density = flow(x, label=torch.full((len(x),), label)).log_prob.exp()
        # Trapezoids of a smooth density with tails inside the square; the step is an eighth.
        assert float(density.sum() * (line[1] - line[0]) ** 2) == pytest.approx(1, abs=1e-5)


def test_gradient_at_every_parameter(flow: TarFlow) -> None:
    x = tokens(flow, 4)
    flow(x, label=labels(flow, 0, 1, 2, -1)).log_prob.sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name


@torch.no_grad()
def test_starts_as_the_identity() -> None:
    flow = TarFlow(CONFIG).double()
    x = tokens(flow, 3)
    out = flow(x, label=torch.tensor([0, 1, 2]))
    assert torch.equal(out.z, x)
    normal = -0.5 * (x.square() + math.log(2 * math.pi)).sum((1, 2))
    torch.testing.assert_close(out.log_prob, normal, rtol=1e-14, atol=1e-14)


@torch.no_grad()
def test_dropout_is_of_training_only() -> None:
    flow, x = tiny(dropout=0.5), tokens(tiny(), 2)
    torch.testing.assert_close(flow(x).log_prob, tiny()(x).log_prob, rtol=0, atol=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = [flow.train()(x).log_prob for _ in range(2)]
    assert not torch.equal(dropped[0], dropped[1])
    kept = tiny().train()
    assert torch.equal(kept(x).log_prob, kept(x).log_prob)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1"),
        ({"head_dim": -1}, "head_dim must be at least 1"),
        ({"layers": ()}, "layers must name at least one layer for each block"),
        ({"layers": (1, 0)}, "layers must name at least one layer for each block"),
        ({"num_classes": -1}, "num_classes must not be negative"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_sizes_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **options)


def test_inputs_are_checked() -> None:
    flow = tiny()
    x = tokens(flow, 2)
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 6, 2\), got \(2, 5, 2\)"):
        flow(x[:, :5])
    with pytest.raises(ValueError, match=r"label must be 2 integers, got torch\.float32"):
        flow(x, label=torch.zeros(2))
    with pytest.raises(ValueError, match=r"label must be 2 integers, got torch.int64 of shape \(3,\)"):
        flow(x, label=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels must be from 0 to 2, or -1 for none, got 0 to 3"):
        flow(x, label=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="got -2 to 1"):
        flow(x, label=torch.tensor([-2, 1]))
    with pytest.raises(ValueError, match="guidance needs a class to go to: give label"):
        flow.inverse(x, guidance=1.0)
    with pytest.raises(ValueError, match="this flow has no classes"):
        tiny(num_classes=0)(x, label=torch.tensor([0, 1]))
