"""Muon: the update of torch's own, orthogonal to within its known band, in the precision the hardware is good at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worldflow import muon
from worldflow.muon import Muon, orthogonalized

SHAPES = [(24, 96), (96, 24), (24, 24), (24, 24), (1, 24)]


def matrices(*shapes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_takes_the_steps_of_torchs_muon() -> None:
    ours, theirs = ([nn.Parameter(m.clone()) for m in matrices(*SHAPES)] for _ in range(2))
    mine = Muon(ours, lr=0.05, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1)
    for step in range(4):
        for p, q, g in zip(ours, theirs, matrices(*SHAPES, seed=step + 1), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        mine.step()
        reference.step()
    for p, q, start in zip(ours, theirs, matrices(*SHAPES), strict=True):
        moved = float((q - start).norm().detach())
        # torch iterates in bf16, whose epsilon is 4e-3.
        assert float((p - q).norm().detach()) < 0.01 * moved


def test_blocks_of_rows_are_matrices_of_their_own() -> None:
    whole = nn.Parameter(matrices((24, 16))[0])
    parts = [nn.Parameter(part.clone()) for part in whole.detach().split(8)]
    other = nn.Parameter(matrices((8, 16), seed=1)[0])
    blocks = Muon([{"params": [whole], "rows": 8}, {"params": [other], "lr": 0.01}], lr=0.05, weight_decay=0.1)
    apart = Muon(parts, lr=0.05, weight_decay=0.1)
    before = other.detach().clone()
    for step in range(3):
        whole.grad = matrices((24, 16), seed=step + 2)[0]
        other.grad = matrices((8, 16), seed=step + 9)[0]
        for part, gradient in zip(parts, whole.grad.split(8), strict=True):
            part.grad = gradient.clone()
        blocks.step()
        apart.step()
    torch.testing.assert_close(whole.detach(), torch.cat([part.detach() for part in parts]), rtol=0, atol=1e-6)
    assert 0 < (other.detach() - before).abs().max() < 0.1


def test_refuses_blocks_that_do_not_fill_a_matrix() -> None:
    with pytest.raises(ValueError, match="a matrix of 10 rows cannot be cut into blocks of 4"):
        Muon([{"params": [nn.Parameter(torch.zeros(10, 3))], "rows": 4}], lr=0.1)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (16, 16)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_end_near_one_whatever_the_scale(shape: tuple[int, int], scale: float) -> None:
    # Singular values from 1 down to a tenth, by construction.
    batch = torch.stack(matrices(shape, shape))
    u, _, v = torch.linalg.svd(batch, full_matrices=False)
    values = torch.linspace(1.0, 0.1, min(shape))
    x = orthogonalized(scale * u @ torch.diag_embed(values.expand(2, -1)) @ v)
    found = torch.linalg.svdvals(x)
    assert x.shape == (2, *shape) and x.dtype == torch.float32
    assert found.min() > 0.6 and found.max() < 1.3
    # The singular vectors stay: u^T x v is diagonal, to the rounding of five steps of three bf16 products (2^-9 each).
    inside = u.mT @ x @ v.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1))).abs().max() < 0.03


def test_no_gradient_no_step_and_zero_gradient_no_trouble() -> None:
    still, zero = (nn.Parameter(m) for m in matrices((4, 4), (4, 4)))
    before = still.detach().clone(), zero.detach().clone()
    zero.grad = torch.zeros(4, 4)
    Muon([still, zero], lr=0.1).step()
    assert torch.equal(still, before[0]) and torch.equal(zero, before[1])


def test_goes_on_from_its_saved_state() -> None:
    def run(*, is_interrupted: bool) -> torch.Tensor:
        p = nn.Parameter(matrices((6, 8))[0])
        optimizer = Muon([p], lr=0.1)
        for step in range(4):
            if step == 2 and is_interrupted:
                saved = optimizer.state_dict()
                optimizer = Muon([p], lr=0.1)
                optimizer.load_state_dict(saved)
            p.grad = matrices((6, 8), seed=step)[0]
            optimizer.step()
        return p.detach()

    assert torch.equal(run(is_interrupted=False), run(is_interrupted=True))


def test_iterates_in_float32_where_bf16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.stack(matrices((16, 32)))
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: False)
    wide = orthogonalized(batch)
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: True)
    narrow = orthogonalized(batch)
    # bf16 has 8 bits: what comes from it has nothing below them, float32 has.
    assert torch.equal(narrow, narrow.bfloat16().float()) and not torch.equal(wide, wide.bfloat16().float())
    assert (wide - narrow).norm() < 0.02 * wide.norm()


def test_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"Muon is for matrices, got a parameter of shape \(3,\); use AdamW"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
