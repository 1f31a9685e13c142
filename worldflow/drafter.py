"""The drafter: a guess of the whole coming frame, made from the past and the action alone.

A small frame-causal transformer with full attention inside frames reads, for frame `t`, the tokens of frame `t - 1`
and their change since `t - 2`, together with the action that leads to `t`, and drafts all of `u_t` at once: what the
frame before held, and what it learns to add. Each layer may end with an MLP over the whole frame (`is_mixed`), and the
running mean of all frames before may be read too (`has_memory`): what left the window, but stands still, is known from
it.

Because it sees only the past, the deep block may use the draft as the center of its affine map and as an input, and the
sampler as its starting point, and the density stays exact. It is trained by a squared error to `u_t`: the plain flow,
which must find motion through the likelihood alone, spends its capacity on texture inside frames first.

On Reacher (codes of 4 x 64 numbers, 90 CPU seconds, one seed), decoded drafts of held-out frames: 27.5 dB without
mixing after 1168 steps, 27.8 dB with it after 703.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worldflow.attention import KeyValue
from worldflow.autoregressive import cell_positions
from worldflow.deep import FrameTransformer
from worldflow.vector_tokens import num_vector_tokens, real_numbers

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

    from worldflow.open_frame import ComingFrame

__all__ = ["Drafter"]


class Drafter(nn.Module):
    """Frame-causal predictor of `u_t`.

    Args:
        latent_dim: Channels of a token.
        grid: Rows and columns of tokens.
        width, layers, head_dim: Its transformer.
        window: Frames in view.
        action_dim: Length of an action's feature vector; 0 for a model without actions.
        is_mixed: Whether each layer ends with an MLP over the whole frame.
        has_memory: Whether it also reads the running mean of all frames before.
        text_dim: Channels of a text token; 0 for a model without text.
        position_base: Side of the grid that positions are measured on; by default the rows of this one.
        vector_dim: Numbers of a vector beside the picture, in tokens behind the grid's (`worldflow.vector_tokens`).
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        grid: tuple[int, int],
        width: int,
        layers: int,
        head_dim: int,
        window: int,
        action_dim: int,
        is_mixed: bool = False,
        has_memory: bool = False,
        text_dim: int = 0,
        position_base: int | None = None,
        vector_dim: int = 0,
    ) -> None:
        super().__init__()
        base = position_base or grid[0]
        self.has_memory = has_memory
        self.proj_in = nn.Linear((3 if has_memory else 2) * latent_dim, width)
        self.existence = nn.Parameter(torch.randn(2, width) * 0.02)  # of the last frame, of the one before it
        self.action_in = None
        if action_dim:
            self.action_in = nn.Sequential(nn.Linear(action_dim, width), nn.GELU(), nn.Linear(width, width))
            self.hidden_action = nn.Parameter(torch.randn(width) * 0.02)
        self.frames = FrameTransformer(
            width,
            layers,
            positions=cell_positions(grid, base=base, below=num_vector_tokens(vector_dim, latent_dim)),
            window=window,
            head_dim=head_dim,
            is_causal_inside=False,
            is_mixed=is_mixed,
            text_dim=text_dim,
            text_base=base,
        )
        self.proj_out = nn.Linear(width, latent_dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.register_buffer("is_real", real_numbers(grid, latent_dim, vector_dim), persistent=False)
        self.is_real: Tensor | None
        # How much of the last frame, of its change and of what the mean has more, each channel keeps: a still world is
        # drafted from the start.
        carry = torch.zeros(3 if has_memory else 2, latent_dim)
        carry[0] = 1
        self.carry = nn.Parameter(carry)

    def forward(
        self,
        previous: Float[Tensor, "batch time token latent"],
        before_previous: Float[Tensor, "batch time token latent"],
        mean: Float[Tensor, "batch time token latent"],
        actions: Float[Tensor, "batch time action"] | None,
        *,
        index: Int64[Tensor, "batch time"],
        is_hidden: Bool[Tensor, "batch time"],
        past: KeyValue | None = None,
        count: Int64[Tensor, " batch"] | None = None,
        frame: ComingFrame | None = None,
    ) -> tuple[Float[Tensor, "batch time token latent"], KeyValue | None]:
        """Draft frames.

        Args:
            previous: `u_{t-1}` for each frame `t` (anything where it does not exist).
            before_previous: `u_{t-2}`, likewise.
            mean: Running mean of the frames before each frame; not read without memory.
            actions: Features of the action that leads to each frame.
            index: How many frames precede each frame.
            is_hidden: Frames whose action is not shown.
            past: Text, and behind it the rolling cache of the frames before where `count` is given.
            count: How many frames each row has seen before; None at the start of a sequence, without a cache.
            frame: Where to draft a single frame; what it leaves stays in there.
        """
        has_one, has_two = (index >= 1)[..., None], (index >= 2)[..., None]
        last = torch.where(has_one[..., None], previous, 0.0)
        change = torch.where(has_two[..., None], previous - before_previous, 0.0)
        context = has_one * self.existence[0] + has_two * self.existence[1]
        if self.action_in is not None:
            assert actions is not None
            shown = torch.where(is_hidden[..., None], self.hidden_action, self.action_in(actions))
            context = context + torch.where(has_one, shown, 0.0)
        told = [last, change]
        if self.has_memory:
            told.append(torch.where(has_one[..., None], mean - previous, 0.0))
        slots = self.proj_in(torch.cat(told, dim=-1)) + context[..., None, :]
        if frame is None:
            hidden, new = self.frames(slots, past=past, count=count)
        else:
            hidden, new = frame(slots[:, 0], 0)[:, None], None
        added = self.proj_out(hidden)
        added = added if added.dtype == torch.float64 else added.float()
        draft = sum((keep * part for keep, part in zip(self.carry, told, strict=True)), added)
        return draft if self.is_real is None else torch.where(self.is_real, draft, 0.0), new
