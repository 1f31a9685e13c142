"""The flow is an exact, causal density: against NumPy loops, autograd Jacobians, gradients, and its own inverses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import tiny_flow
from naive_flow import NaiveFlow
from torch import Tensor

from worldflow.flow import FlowConfig, VideoFlow
from worldflow.guidance import sharpen
from worldflow.jacobi import Method
from worldflow.state import WorldState

LAYOUTS: dict[str, dict[str, Any]] = {
    "actions and draft": {},
    "no draft": {"draft": False},
    "no actions": {"action_dim": 0},
    "released layout": {"action_dim": 0, "draft": False},
    "no soft clip": {"soft_clip": None, "scale": 0.7},
    "three shallow blocks": {"shallow_layers": (1, 2, 1)},
    "no shallow block": {"shallow_layers": ()},
    "wide grid": {"grid": (1, 3), "latent_dim": 2},
    "window of one frame": {"window": 1},
    "mixed drafts": {"mixing": True},
    "shown frames": {"shown": True, "shallow_layers": ()},
    "shown frames, released layout": {"shown": True, "action_dim": 0},
    "memory": {"memory": 4},
    "memory of shown frames": {"memory": 3, "shown": True},
    "text": {"text_dim": 5},
    "text, released layout": {"text_dim": 5, "action_dim": 0, "draft": False},
    "no third axis": {"has_time_axis": False, "action_dim": 0, "draft": False},
    "positions of another grid": {"position_base": 5},
    "vector": {"vector_dim": 3},
    "filled-up vector": {"vector_dim": 4},
    "filled-up vector, released layout": {"vector_dim": 1, "action_dim": 0, "draft": False},
    "filled-up vector beside shown frames": {"vector_dim": 2, "shown": True, "shallow_layers": (), "memory": 3},
    "filled-up vector in mixed drafts": {"vector_dim": 5, "mixing": True, "grid": (1, 2)},
}


@pytest.fixture(params=LAYOUTS.values(), ids=list(LAYOUTS))
def flow(request: pytest.FixtureRequest) -> VideoFlow:
    return tiny_flow(**request.param)


def clips(flow: VideoFlow, batch: int, frames: int, *, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """Random latents and action features in the flow's precision."""
    config = flow.config
    generator = torch.Generator().manual_seed(seed)
    dtype = flow.deep.start.dtype
    x = torch.randn(batch, frames, config.num_tokens, config.latent_dim, generator=generator, dtype=torch.float64)
    x = flow.only_real(x)
    if not config.action_dim:
        return x.to(dtype), None
    actions = torch.randn(batch, frames, config.action_dim, generator=generator, dtype=torch.float64)
    return x.to(dtype), actions.to(dtype)


def part(actions: Tensor | None, *index: Any) -> Tensor | None:
    return None if actions is None else actions[index]


def seen(flow: VideoFlow, x: Tensor) -> dict[str, Tensor]:
    """What is shown of frames, where the flow reads it: any function of each of them."""
    return {"shown": x.sin()} if flow.config.has_shown else {}


def words(flow: VideoFlow, rows: int | slice | list[int]) -> Tensor | None:
    """Texts of three words for the named rows of a batch, where the flow reads some."""
    if not flow.config.text_dim:
        return None
    generator = torch.Generator().manual_seed(7)
    texts = torch.randn(8, 3, flow.config.text_dim, generator=generator, dtype=torch.float64)
    return texts[:rows] if isinstance(rows, int) else texts[rows]


def given(flow: VideoFlow, x: Tensor) -> dict[str, Tensor]:
    """What the flow reads beside frames and actions where a sequence begins."""
    text = words(flow, len(x))
    return seen(flow, x) if text is None else seen(flow, x) | {"text": text}


def test_maps_are_far_from_the_identity(flow: VideoFlow) -> None:
    # Otherwise the tests below would prove little.
    x, actions = clips(flow, 2, 4)
    out = flow(x, actions, **given(flow, x))
    scale = out.log_det.abs().mean() / flow.config.latent_dim
    assert torch.equal(out.u, x) if not flow.config.shallow_layers else (out.u - x).abs().mean() > 0.2
    assert (out.z - out.u).abs().mean() > 0.2
    assert scale > 0.1
    if out.draft is not None:
        assert out.draft.abs().mean() > 0.2


@torch.no_grad()
def test_equals_loops_in_numpy(flow: VideoFlow) -> None:
    x, actions = clips(flow, 2, 5)
    hide = torch.tensor([False, True])
    out = flow(x, actions, hide_actions=hide, **given(flow, x))
    naive = NaiveFlow(flow)
    for row in range(2):
        led = None if actions is None else actions[row].numpy()
        looks = {name: look[row].numpy() for name, look in given(flow, x).items()}
        expected = naive(x[row].numpy(), led, is_hidden=bool(hide[row]), **looks)
        # Both in float64, sums of at most a thousand terms of order one: 1e-9 is a thousand times their rounding.
        for name in ("log_prob", "z", "u", "draft", "hidden"):
            found, wanted = getattr(out, name), getattr(expected, name)
            assert (found is None) == (wanted is None)
            if found is not None:
                torch.testing.assert_close(found[row], torch.from_numpy(wanted), rtol=1e-9, atol=1e-9)


def test_log_det_is_that_of_the_jacobian(flow: VideoFlow) -> None:
    x, actions = clips(flow, 1, 3)
    for hide in (torch.tensor([False]), torch.tensor([True])):
        out = flow(x, actions, hide_actions=hide, **given(flow, x))

        def to_noise(v: Tensor, hide: Tensor = hide) -> Tensor:
            return flow(v, actions, hide_actions=hide, **given(flow, v)).z

        jacobian = torch.autograd.functional.jacobian(to_noise, x)
        assert isinstance(jacobian, Tensor)
        real = flow.only_real(torch.ones_like(x)).bool().flatten()
        matrix = jacobian.reshape(x.numel(), x.numel())[real][:, real]
        assert len(matrix) == 3 * flow.config.frame_dim
        sign, log_det = torch.linalg.slogdet(matrix)
        assert sign == 1
        # The determinant of a matrix of some 36 rows: rounding of 1e-15 times its condition, which is below 1e4.
        torch.testing.assert_close(out.log_det.sum(), log_det, rtol=0, atol=1e-9)
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(out.z).flatten()[real].sum()
        torch.testing.assert_close(out.log_prob.sum(), normal + log_det, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("shallow_layers", [(), (1,)])
def test_what_fills_a_token_up_is_never_drawn_nor_counted(shallow_layers: tuple[int, ...]) -> None:
    flow = tiny_flow(vector_dim=4, shallow_layers=shallow_layers)
    config = flow.config
    assert (config.num_tokens, config.frame_dim, config.num_filled) == (6, 16, 2)
    noise = torch.randn(2, 3, 6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    actions = torch.zeros(2, 3, 2, dtype=torch.float64)
    x = flow.inverse(noise, actions, tolerance=1e-12)
    assert not x[..., -1, 1:].any() and x[..., -1, 0].all()
    out = flow(x, actions)
    torch.testing.assert_close(out.z, flow.only_real(noise), rtol=1e-8, atol=1e-8)
    x[..., -1, 1:] = 7.0
    torch.testing.assert_close(flow(x, actions).log_prob, out.log_prob)
    drawn = flow.draw(flow.initial_state(2), actions[:, 0], noise[:, 0], tolerance=1e-12)
    shallow = flow.to_deep(x)[1][:, 0].sum(-1)
    torch.testing.assert_close(drawn.log_prob + shallow, out.log_prob[:, 0], rtol=1e-8, atol=1e-8)


def test_tokens_of_the_vector_lie_below_the_grid() -> None:
    flow = tiny_flow(vector_dim=4)
    places = flow.deep.frames.positions
    assert places[:, :2].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1], [3, 0]]
    assert flow.drafter is not None
    assert torch.equal(flow.drafter.frames.positions, places[:-1])


def test_likelihood_of_a_frame_depends_on_nothing_later(flow: VideoFlow) -> None:
    x, actions = clips(flow, 1, 5)
    x.requires_grad_()
    inputs = [x] if actions is None else [x, actions.requires_grad_()]
    log_prob = flow(x, actions, **given(flow, x)).log_prob[0]
    for t in range(5):
        gradients = torch.autograd.grad(log_prob[t], inputs, retain_graph=True)
        by_frame = gradients[0][0].abs().sum((-2, -1))
        assert (by_frame[t + 1 :] == 0).all()
        nearest = range(max(0, t - 1), t + 1) if actions is None or flow.config.window > 1 else [t]
        assert all(by_frame[k] > 1e-6 for k in nearest)
        if actions is not None:
            by_action = gradients[1][0].abs().sum(-1)  # actions[t] led to frame t
            assert (by_action[t + 1 :] == 0).all()
            assert by_action[0] == 0
            assert t == 0 or by_action[t] > 1e-6


def test_shallow_blocks_stay_inside_a_frame(flow: VideoFlow) -> None:
    x, _ = clips(flow, 1, 3)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.to_deep(v)[0].sum((0, 2, 3)), x)
    assert isinstance(jacobian, Tensor)
    reach = jacobian[:, 0].abs().sum((-2, -1)) > 0  # (frame of u, frame of x)
    assert (reach == torch.eye(3, dtype=torch.bool)).all()


@pytest.mark.parametrize("action_dim", [0, 2])
def test_draft_sees_the_past_only(action_dim: int) -> None:
    flow = tiny_flow(action_dim=action_dim)
    x, actions = clips(flow, 1, 5)
    x.requires_grad_()
    inputs = [x] if actions is None else [x, actions.requires_grad_()]
    draft = flow(x, actions).draft
    assert draft is not None
    for t in range(1, 5):
        gradients = torch.autograd.grad(draft[0, t].square().sum(), inputs, retain_graph=True)
        by_frame = gradients[0][0].abs().sum((-2, -1))
        assert (by_frame[t:] == 0).all()
        assert (by_frame[max(0, t - 2) : t] > 1e-6).all()
        if actions is not None:
            by_action = gradients[1][0].abs().sum(-1)
            assert by_action[t] > 1e-6
            assert (by_action[t + 1 :] == 0).all()
    x.grad = None
    first = torch.autograd.grad(draft[0, 0].square().sum(), inputs, allow_unused=True)
    assert all(g is None or not g.any() for g in first)


@pytest.mark.parametrize(
    ("layout", "extra"),
    [
        ({"draft": False}, 0),
        ({"draft": False, "action_dim": 0}, 1),  # the slot in front of a frame is the last token before it
        ({"draft_layers": 2}, 2 * (3 - 1) + 2),  # drafts see as many frames again, and read two frames back
    ],
)
def test_attention_reaches_as_far_as_its_window(layout: dict[str, Any], extra: int) -> None:
    layers, window = 2, 3
    options = {name: value for name, value in layout.items() if name != "draft_layers"}
    flow = tiny_flow(window=window, deep_layers=layers, **options)
    reach = layers * (window - 1) + extra
    x, actions = clips(flow, 1, reach + 4)
    x.requires_grad_()
    last = reach + 3
    (gradient,) = torch.autograd.grad(flow(x, actions).log_prob[0, last], [x])
    by_frame = gradient[0].abs().sum((-2, -1))
    assert (by_frame[: last - reach] == 0).all()
    assert (by_frame[last - reach :] > 1e-12).all()


@torch.no_grad()
@pytest.mark.parametrize("method", ["sequential", "jacobi"])
def test_drawing_inverts_scoring(flow: VideoFlow, method: Method) -> None:
    x, actions = clips(flow, 3, 6)
    out = flow(x, actions, **given(flow, x))
    state = flow.initial_state(3, words(flow, 3))
    # Solved to 1e-12 in float64; errors feed back over six frames through maps that stretch up to a hundredfold.
    for t in range(6):
        drawn = flow.draw(state, part(actions, slice(None), t), out.z[:, t], method=method, tolerance=1e-12)
        torch.testing.assert_close(drawn.u, out.u[:, t], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(drawn.hidden, out.hidden[:, t], rtol=1e-8, atol=1e-8)
        found = flow.from_deep(drawn.u, method=method, tolerance=1e-12)
        torch.testing.assert_close(found, x[:, t], rtol=1e-8, atol=1e-8)
        _, shallow = flow.to_deep(x[:, t : t + 1])
        total = drawn.log_prob + shallow[:, 0].sum(-1)
        torch.testing.assert_close(total, out.log_prob[:, t], rtol=1e-8, atol=1e-8)
        assert drawn.sweeps <= flow.deep.frames.slots
        looks = seen(flow, found)
        state = flow.show(drawn.state, looks["shown"]) if looks else drawn.state


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_jacobi_agrees_with_sequential_in_float32(scale: float) -> None:
    flow = tiny_flow(grid=(4, 4), latent_dim=4, dtype=torch.float32, scale=scale)
    x, actions = clips(flow, 4, 8)
    state = flow(x, actions, keep_state=True).state
    assert state is not None
    z = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(3))
    action = part(actions, slice(None), 0)
    reference = flow.draw(state, action, z, method="sequential")
    drawn = flow.draw(state, action, z, method="jacobi", tolerance=1e-5)
    # The demand on samplers: 1e-4 of the largest value.
    assert (drawn.u - reference.u).abs().max() <= 1e-4 * reference.u.abs().max()
    slow, fast = flow.from_deep(reference.u, method="sequential"), flow.from_deep(reference.u)
    assert (slow - fast).abs().max() <= 1e-4 * slow.abs().max()


@torch.no_grad()
def test_cache_rolls_on_for_many_windows(flow: VideoFlow) -> None:
    x, actions = clips(flow, 2, 20)
    hide = torch.tensor([False, True])
    whole = flow(x, actions, hide_actions=hide, **given(flow, x))
    state, at = None, 0
    for count in (1, 4, 2, 7, 1, 5):
        piece = slice(at, at + count)
        beside = given(flow, x[:, piece]) if state is None else seen(flow, x[:, piece])
        options = {"hide_actions": hide, "state": state, "keep_state": True} | beside
        out = flow(x[:, piece], part(actions, slice(None), piece), **options)
        state, at = out.state, at + count
        # The same sums in another order, in float64.
        torch.testing.assert_close(out.log_prob, whole.log_prob[:, piece], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out.hidden, whole.hidden[:, piece], rtol=1e-10, atol=1e-10)
    assert at == 20
    assert state is not None
    assert state.count.tolist() == [20, 20]


@torch.no_grad()
def test_rows_of_any_age_live_in_one_batch(flow: VideoFlow) -> None:
    ages, steps = (0, 1, 2, 3, 9), 5
    x, actions = clips(flow, len(ages), max(ages) + steps)
    whole = flow(x, actions, **given(flow, x))
    states = []
    for row, age in enumerate(ages):
        rows = slice(row, row + 1)
        if age == 0:
            states.append(flow.initial_state(1, words(flow, [row])))
            continue
        young = x[rows, :age]
        state = flow.initial_state(1, words(flow, [row]))
        state = flow(young, part(actions, rows, slice(0, age)), state=state, **seen(flow, young)).state
        assert state is not None
        states.append(state)
    joined = WorldState.cat(states)
    # Mix the rows every way there is: join, repeat, pick, and exchange.
    order = [4, 0, 2, 1, 3]
    mixed = joined.repeat(2)[[2 * i for i in order]]
    mixed = mixed.replace([1, 3], joined[[0, 1]]).replace([0], joined[4])
    future = torch.stack([x[i, ages[i] : ages[i] + steps] for i in order])
    led = None if actions is None else torch.stack([actions[i, ages[i] : ages[i] + steps] for i in order])
    out = flow(future, led, state=mixed, **seen(flow, future))
    for row, i in enumerate(order):
        expected = whole.log_prob[i, ages[i] : ages[i] + steps]
        torch.testing.assert_close(out.log_prob[row], expected, rtol=1e-10, atol=1e-10)
    drawn = flow.draw(mixed, None if led is None else led[:, 0], out.z[:, 0], tolerance=1e-12)
    torch.testing.assert_close(drawn.u, out.u[:, 0], rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_states_are_never_written() -> None:
    flow = tiny_flow()
    x, actions = clips(flow, 2, 4)
    state = flow(x, actions, keep_state=True).state
    assert state is not None and actions is not None
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    flow.draw(state, actions[:, 0], x[:, 0])
    flow(x, actions, state=state)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


@torch.no_grad()
@pytest.mark.parametrize(("draft", "seed"), [(False, 0), (True, 2)])
def test_density_integrates_to_one(draft: bool, seed: int) -> None:
    # Of 4000 draws the largest number is 12.5: a square of +-18 loses less than 1e-6. The trapezoidal rule errs by
    # 2 exp(-2 (pi sigma / h)^2) for a Gaussian of width sigma; few scales are below h = 0.25, none below 0.16 (1e-3).
    line = torch.linspace(-18, 18, 145, dtype=torch.float64)
    points, area = torch.cartesian_prod(line, line), (line[1] - line[0]) ** 2
    action = torch.full((len(points), 2, 1), 0.7, dtype=torch.float64)

    # Two frames of one number: the density of the whole clip.
    flow = tiny_flow(grid=(1, 1), latent_dim=1, action_dim=1, draft=draft, deep_layers=1, seed=seed, width=16)
    both = flow(points[:, :, None, None], action).log_prob.sum(1)
    assert abs(float(both.exp().sum() * area) - 1) < 1e-4

    # Two tokens of one number: a frame alone, and after another one.
    flow = tiny_flow(grid=(1, 2), latent_dim=1, action_dim=1, draft=draft, deep_layers=1, seed=seed, width=16)
    first = torch.tensor([[[[0.3], [-1.1]]]], dtype=torch.float64)
    state = flow(first, action[:1, :1], keep_state=True).state
    assert state is not None
    frame = points[:, None, :, None]
    alone = flow(frame, action[:, :1]).log_prob[:, 0]
    after = flow(frame, action[:, :1], state=state.repeat(len(points))).log_prob[:, 0]
    assert (alone - after).abs().max() > 0.1
    assert abs(float(alone.exp().sum() * area) - 1) < 1e-4
    assert abs(float(after.exp().sum() * area) - 1) < 1e-4


def test_hidden_actions_do_not_matter_and_shown_ones_do() -> None:
    flow = tiny_flow()
    x, actions = clips(flow, 2, 4)
    assert actions is not None
    hide = torch.tensor([True, False])
    with torch.no_grad():
        one, other = (flow(x, a, hide_actions=hide).log_prob for a in (actions, actions + 1))
    assert torch.equal(one[0], other[0])
    assert ((one[1] - other[1]).abs()[1:] > 1e-6).all()
    assert one[1, 0] == other[1, 0]


def test_every_parameter_gets_a_gradient(flow: VideoFlow) -> None:
    x, actions = clips(flow, 2, 5)
    out = flow(x, actions, hide_actions=torch.tensor([False, True]), **given(flow, x))
    (out.log_prob.sum() + out.hidden.sum()).backward()
    idle = [name for name, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_a_detached_draft_learns_nothing_from_the_likelihood() -> None:
    flow = tiny_flow()
    x, actions = clips(flow, 2, 4)
    flow(x, actions, detach_draft=True).log_prob.sum().backward()
    assert flow.drafter is not None
    assert all(p.grad is None for p in flow.drafter.parameters())
    # Nor does anything else learn of actions from it: their features are the drafter's, too.
    assert actions is not None
    actions.requires_grad_()
    out = flow(x, actions, detach_draft=True)
    assert torch.autograd.grad(out.log_prob.sum(), actions, allow_unused=True, retain_graph=True)[0] is None
    assert out.draft is not None
    assert torch.autograd.grad(out.draft.sum(), actions)[0].any()
    undrafted = tiny_flow(draft=False)
    assert torch.autograd.grad(undrafted(x, actions, detach_draft=True).log_prob.sum(), actions)[0].any()
    actions.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(flow(x, actions, detach_draft=True).log_prob, flow(x, actions).log_prob)


def test_text_matters_to_every_frame_and_frames_not_to_text() -> None:
    flow = tiny_flow(text_dim=5, window=2)
    x, actions = clips(flow, 1, 5)
    text = words(flow, 1)
    assert text is not None
    text.requires_grad_()
    log_prob = flow(x, actions, text=text).log_prob[0]
    for t in range(5):  # a text never leaves the window
        (gradient,) = torch.autograd.grad(log_prob[t], text, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 1e-6).all()
    assert flow.drafter is not None
    first, longer = (flow.deep.frames.read_text(text[:, :n]).keys for n in (2, 3))
    assert not torch.allclose(first, longer[:, :, :, :2])  # words have their places relative to the text's length
    keys = flow.deep.frames.read_text(text).keys
    (gradient,) = torch.autograd.grad(keys[1, 0, :, 1].sum(), text)
    assert (gradient[0, 2] == 0).all()
    assert gradient[0, :2].any()


@torch.no_grad()
def test_another_grid_shares_parameters_and_holds_the_old_positions() -> None:
    flow = tiny_flow(action_dim=0, draft=False, shallow_layers=(1,))
    other = flow.on_grid((2, 3))
    assert all(a is b for a, b in zip(flow.parameters(), other.parameters(), strict=True))
    assert flow.on_grid((2, 2)) is flow
    assert other.config.num_tokens == 6
    # Positions are measured on the first grid: cells of `2 / sqrt(6)`.
    assert torch.allclose(other.deep.frames.positions[5], torch.tensor([1.0, 2.0, 0.0]).double() * 2 / 6**0.5)
    x = torch.randn(2, 3, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = other(x).z
    torch.testing.assert_close(other.inverse(z, tolerance=1e-12), x, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="mix all 4 tokens"):
        tiny_flow(mixing=True).on_grid((2, 3))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["actions and draft", "released layout", "text", "text, released layout"])
@pytest.mark.parametrize("method", ["sequential", "jacobi"])
def test_inverse_of_whole_clips(layout: str, method: Method) -> None:
    flow = tiny_flow(**LAYOUTS[layout])
    x, actions = clips(flow, 2, 5)
    text = words(flow, 2)
    z = flow(x, actions, text=text).z
    found = flow.inverse(z, actions, text=text, method=method, tolerance=1e-12)
    torch.testing.assert_close(found, x, rtol=1e-7, atol=1e-7)
    # Given frames come back as they are, whatever noise stands in their place.
    z[:, :2] = torch.nan
    found = flow.inverse(z, actions, text=text, context=x[:, :2], method=method, tolerance=1e-12)
    torch.testing.assert_close(found, x, rtol=1e-7, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["actions and draft", "text", "text, released layout"])
def test_guided_frames_solve_the_guided_map(layout: str) -> None:
    # The definition, token by token and without any cache: each token is drawn from the sharpened Gaussian.
    flow = tiny_flow(**LAYOUTS[layout])
    weight = 1.3
    x, actions = clips(flow, 2, 4)
    text, nothing = words(flow, 2), words(flow, [4, 5])
    hide = torch.full((2,), text is None)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = flow.inverse(
        z, actions, text=text, text_without=nothing, guidance=weight, context=x[:, :2], tolerance=1e-12
    )
    u, _ = flow.to_deep(found)
    expected = u.clone()
    expected[:, 2:] = 0
    for t in (2, 3):
        for n in range(flow.config.num_tokens):

            def maps(text: Tensor | None, hide: Tensor | None, at: tuple[int, int]) -> tuple[Tensor, Tensor]:
                trial = []
                for value in (0.0, 1.0):  # z is affine in the token itself
                    frames = flow.from_deep(expected.flatten(0, 1), tolerance=1e-13).unflatten(0, expected.shape[:2])
                    probe = expected.clone()
                    probe[:, at[0], at[1]] = value
                    frames = flow.from_deep(probe.flatten(0, 1), tolerance=1e-13).unflatten(0, probe.shape[:2])
                    trial.append(flow(frames, actions, text=text, hide_actions=hide).z[:, at[0], at[1]])
                sigma = 1 / (trial[1] - trial[0])
                return -trial[0] * sigma, sigma

            mu, sigma = sharpen(maps(text, None, (t, n)), maps(nothing, hide, (t, n)), weight)
            expected[:, t, n] = mu + sigma * z[:, t, n]
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, flow.inverse(z, actions, text=text, context=x[:, :2]), atol=0.01)


def test_says_what_is_wrong_with_conditions() -> None:
    flow, silent = tiny_flow(text_dim=5), tiny_flow(action_dim=0)
    x, actions = clips(flow, 2, 3)
    text = words(flow, 2)
    assert text is not None
    with pytest.raises(ValueError, match=r"text must be of shape \(2, words, 5\), got None"):
        flow(x, actions)
    with pytest.raises(ValueError, match=r"text must be of shape \(2, words, 5\), got \(1, 3, 5\)"):
        flow(x, actions, text=text[:1])
    with pytest.raises(ValueError, match=r"text must be None: this flow reads none, got \(2, 3, 5\)"):
        silent(x, text=text)
    with pytest.raises(ValueError, match="the text is part of the state"):
        flow(x, actions, text=text, state=flow.initial_state(2, text))
    with pytest.raises(ValueError, match="guidance needs text_without"):
        flow.inverse(x, actions, text=text, guidance=1.0)
    with pytest.raises(ValueError, match="neither text nor actions"):
        silent.inverse(x, guidance=1.0)
    with pytest.raises(ValueError, match="4 frames are given, but z holds noise for 3"):
        silent.inverse(x, context=torch.zeros(2, 4, 4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="as they are shown"):
        tiny_flow(shown=True).inverse(x, actions)
    with pytest.raises(ValueError, match="text has its places on the third axis"):
        tiny_flow(text_dim=5, has_time_axis=False)


def test_says_what_is_wrong_with_shapes_and_sizes() -> None:
    flow = tiny_flow()
    x, actions = clips(flow, 1, 3)
    assert actions is not None
    with pytest.raises(ValueError, match=r"x must have shape \(batch, time, 4, 3\), got \(1, 3, 4, 2\)"):
        flow(x[..., :2], actions)
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 3, 2\), got none"):
        flow(x)
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 3, 2\), got \(1, 2, 2\)"):
        flow(x, actions[:, :2])
    with pytest.raises(ValueError, match="does not read codes of shown frames"):
        flow(x, actions, shown=x)
    with pytest.raises(ValueError, match=r"shown frames must have the shape \(1, 3, 4, 3\) of x, got none"):
        tiny_flow(shown=True)(x, actions)
    with pytest.raises(ValueError, match="even number of blocks"):
        FlowConfig(latent_dim=1, grid=(1, 1), shallow_layers=(1, 1))
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        FlowConfig(latent_dim=1, grid=(1, 1), window=0)
    with pytest.raises(ValueError, match="memory must not be negative, got -1"):
        FlowConfig(latent_dim=1, grid=(1, 1), memory=-1)
    with pytest.raises(ValueError, match="vector_dim must not be negative, got -1"):
        FlowConfig(latent_dim=1, grid=(1, 1), vector_dim=-1)
