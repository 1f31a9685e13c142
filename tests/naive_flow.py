"""The flow once more, written down literally: float64 NumPy, one row, loops over slots, heads and channel pairs.

Nothing is shared with the package but the weights. It follows the mathematics (slots, positions, window, affine map,
log-determinant) in the order of the equations and makes no attempt to be fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worldflow.flow import VideoFlow

__all__ = ["NaiveFlow", "NaiveOutput", "naive_rotate"]


@dataclass(frozen=True, kw_only=True)
class NaiveOutput:
    log_prob: np.ndarray
    z: np.ndarray
    u: np.ndarray
    draft: np.ndarray | None
    hidden: np.ndarray


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def naive_rotate(vector: np.ndarray, position: tuple[float, float, float], *, has_time_axis: bool = True) -> np.ndarray:
    """3/8 of the pairs turn with the row, 3/8 with the column, 1/4 with time; pairs are consecutive channels.

    Without a third axis, half of them with the row and half with the column.
    """
    pairs = len(vector) // 2
    spatial, temporal = (3 * pairs // 8, pairs // 4) if has_time_axis else (pairs // 2, 0)
    angles = [position[0] * 10000 ** (-2 * k / (2 * spatial)) for k in range(spatial)]
    angles += [position[1] * 10000 ** (-2 * k / (2 * spatial)) for k in range(spatial)]
    angles += [position[2] * 10000 ** (-k / temporal) for k in range(temporal)]
    out = np.empty_like(vector)
    for k, angle in enumerate(angles):
        p, q = vector[2 * k], vector[2 * k + 1]
        out[2 * k] = p * math.cos(angle) - q * math.sin(angle)
        out[2 * k + 1] = q * math.cos(angle) + p * math.sin(angle)
    return out


class NaiveFlow:
    """One row at a time."""

    def __init__(self, flow: VideoFlow) -> None:
        self.config = flow.config
        self.weights = {name: tensor.double().numpy() for name, tensor in flow.state_dict().items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self.weights[f"{name}.weight"] @ x
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def rotate(self, vector: np.ndarray, position: tuple[float, float, float]) -> np.ndarray:
        return naive_rotate(vector, position, has_time_axis=self.config.has_time_axis)

    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centered = x - x.mean()
        normal = centered / math.sqrt((centered**2).mean() + 1e-5)
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def mlp(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.linear(f"{name}.2", gelu(self.linear(f"{name}.0", x)))

    def transformer(
        self,
        name: str,
        slots: list[np.ndarray],
        positions: list[tuple[float, float, float]],
        visible: list[list[int]],
        layers: int,
        *,
        mixed_slots: int = 0,
    ) -> list[np.ndarray]:
        """Final hidden state of every slot; `visible[i]` lists the slots that slot `i` sees."""
        size = self.config.head_dim
        hidden = list(slots)
        for layer in range(layers):
            block = f"{name}.blocks.{layer}"
            width = len(hidden[0])
            queries, keys, values = [], [], []
            for slot, position in zip(hidden, positions, strict=True):
                qkv = self.linear(f"{block}.qkv", self.layer_norm(f"{block}.attention_norm", slot))
                heads = [slice(first, first + size) for first in range(0, width, size)]
                queries.append([self.rotate(qkv[:width][head], position) for head in heads])
                keys.append([self.rotate(qkv[width : 2 * width][head], position) for head in heads])
                values.append([qkv[2 * width :][head] for head in heads])
            after = []
            for i, slot in enumerate(hidden):
                mixed = []
                for head in range(width // size):
                    scores = np.array([queries[i][head] @ keys[j][head] / math.sqrt(size) for j in visible[i]])
                    chances = np.exp(scores - scores.max())
                    chances /= chances.sum()
                    mixed.append(sum(c * values[j][head] for c, j in zip(chances, visible[i], strict=True)))
                x = slot + self.linear(f"{block}.attention_out", np.concatenate(mixed))
                inner = gelu(self.linear(f"{block}.mlp_in", self.layer_norm(f"{block}.mlp_norm", x)))
                after.append(x + self.linear(f"{block}.mlp_out", inner))
            hidden = after
            if mixed_slots:
                hidden = self.mix(f"{block}.mixing", hidden, mixed_slots)
        gain = 1 + self.weights[f"{name}.final_norm.weight"]
        return [x / math.sqrt((x**2).mean() + 1e-6) * gain for x in hidden]

    def mix(self, name: str, hidden: list[np.ndarray], slots: int) -> list[np.ndarray]:
        """An MLP over all slots of each frame, added to them."""
        after = []
        for first in range(0, len(hidden), slots):
            frame = hidden[first : first + slots]
            joined = np.concatenate([self.layer_norm(f"{name}.norm", slot) for slot in frame])
            added = self.linear(f"{name}.reduce", gelu(self.linear(f"{name}.expand", joined)))
            after += [slot + part for slot, part in zip(frame, np.split(added, slots), strict=True)]
        return after

    def real(self, token: int) -> int:
        """How many channels of a token are part of the frame."""
        before = self.config.grid[0] * self.config.grid[1]
        if token < before:
            return self.config.latent_dim
        return min(self.config.latent_dim, self.config.vector_dim - (token - before) * self.config.latent_dim)

    def affine(self, name: str, hidden: np.ndarray, token: int) -> tuple[np.ndarray, np.ndarray]:
        out = self.linear(f"{name}.proj_out", hidden)
        if self.config.soft_clip is not None:
            out = self.config.soft_clip * np.tanh(out / self.config.soft_clip)
        a, mu = out[: self.config.latent_dim], out[self.config.latent_dim :]
        sigma = np.log1p(np.exp(a + 0.541324854612918))
        mu[self.real(token) :], sigma[self.real(token) :] = 0.0, 1.0
        return mu, sigma

    def base(self) -> int:
        return self.config.position_base or self.config.grid[0]

    def words(self, name: str, text: np.ndarray | None) -> tuple[list, list]:
        """Slots of a text and their positions."""
        if text is None:
            return [], []
        return [self.linear(f"{name}.text_in", word) for word in text], [
            (0.0, 0.0, m / len(text) * self.base()) for m in range(len(text))
        ]

    def cells(self) -> list[tuple[float, float]]:
        rows, columns = self.config.grid
        scale = self.base() / math.sqrt(rows * columns)
        cells = [(row * scale, column * scale) for row in range(rows) for column in range(columns)]
        below = math.ceil(self.config.vector_dim / self.config.latent_dim)
        return cells + [(rows * scale, column * scale) for column in range(below)]

    def shallow(self, frame: np.ndarray) -> tuple[np.ndarray, float]:
        log_det = 0.0
        for i, layers in enumerate(self.config.shallow_layers):
            name = f"shallow.{i}"
            tokens = frame[::-1] if i % 2 == 0 else frame
            inputs = [self.weights[f"{name}.start"], *tokens[:-1]]
            hidden = self.transformer(
                f"{name}.transformer",
                [self.linear(f"{name}.proj_in", token) for token in inputs],
                [(row, column, 0.0) for row, column in self.cells()],
                [list(range(j + 1)) for j in range(len(tokens))],
                layers,
            )
            out = []
            order = range(len(tokens))[::-1] if i % 2 == 0 else range(len(tokens))
            for n, token, state in zip(order, tokens, hidden, strict=True):
                mu, sigma = self.affine(name, state, n)
                out.append((token - mu) / sigma)
                log_det -= np.log(sigma).sum()
            frame = np.array(out[::-1] if i % 2 == 0 else out)
        return frame, log_det

    def drafts(self, u: np.ndarray, actions: np.ndarray | None, is_hidden: bool, text: np.ndarray | None) -> np.ndarray:
        slots, positions, frame_of, carried = [], [], [], []
        keep, go_on, *recall = self.weights["drafter.carry"]
        for t in range(len(u)):
            for n, cell in enumerate(self.cells()):
                last = u[t - 1][n] if t >= 1 else np.zeros(u.shape[2])
                change = u[t - 1][n] - u[t - 2][n] if t >= 2 else np.zeros(u.shape[2])
                told = [last, change]
                if recall:
                    mean = np.zeros(u.shape[2])
                    for k in range(t):  # of all frames before, or their exponential mean from `memory` frames on
                        mean = mean + (u[k][n] - mean) / min(k + 1, self.config.memory)
                    told.append(mean - last)
                slot = self.linear("drafter.proj_in", np.concatenate(told))
                if t >= 1:
                    slot = slot + self.weights["drafter.existence"][0]
                    if actions is not None:
                        shown = self.mlp("drafter.action_in", actions[t])
                        slot = slot + (self.weights["drafter.hidden_action"] if is_hidden else shown)
                if t >= 2:
                    slot = slot + self.weights["drafter.existence"][1]
                slots.append(slot)
                carried.append(keep * last + go_on * change + sum(r * told[2] for r in recall))
                positions.append((*cell, float(t)))
                frame_of.append(t)
        window = self.config.window
        told_words, places = self.words("drafter.frames", text)
        first = len(told_words)
        visible = [list(range(m + 1)) for m in range(first)]
        visible += [
            [*range(first), *(first + j for j, k in enumerate(frame_of) if q - window < k <= q)] for q in frame_of
        ]
        slots, positions = told_words + slots, places + positions
        name = "drafter.frames.transformer"
        mixed = len(self.cells()) if self.config.draft_mixing else 0
        hidden = self.transformer(name, slots, positions, visible, self.config.draft_layers, mixed_slots=mixed)
        added = np.array([self.linear("drafter.proj_out", h) for h in hidden[first:]])
        drafts = (np.array(carried) + added).reshape(u.shape)
        for n in range(u.shape[1]):
            drafts[:, n, self.real(n) :] = 0.0
        return drafts

    def __call__(
        self,
        x: np.ndarray,
        actions: np.ndarray | None,
        *,
        shown: np.ndarray | None = None,
        text: np.ndarray | None = None,
        is_hidden: bool = False,
    ) -> NaiveOutput:
        """The density of frames `(time, token, latent)`; `actions[t]` led to frame `t`, `shown[t]` is seen after it."""
        num_frames, num_tokens, _ = x.shape
        shallow = [self.shallow(frame) for frame in x]
        u = np.array([frame for frame, _ in shallow])
        past = u if shown is None else shown
        draft = self.drafts(past, actions, is_hidden, text) if self.config.draft_layers else None

        slots, positions, frame_of = [], [], []
        for t in range(num_frames):
            if t == 0:
                lead = self.linear("deep.proj_in", self.weights["deep.start"])
            elif actions is None:
                lead = self.linear("deep.proj_in", past[t - 1][-1])
            elif is_hidden:
                lead = self.weights["deep.hidden_action"]
            else:
                lead = self.mlp("deep.action_in", actions[t])
            frame = [lead, *(self.linear("deep.proj_in", token) for token in u[t])]
            cells = [*self.cells(), (float(self.config.grid[0] + (self.config.vector_dim > 0)), 0.0)]
            if actions is None:
                frame, cells = frame[:-1], cells[:-1]
            for n, (slot, cell) in enumerate(zip(frame, cells, strict=True)):
                hint = 0.0
                if draft is not None and n < num_tokens:
                    hint = self.weights["deep.draft_in.weight"] @ draft[t][n]
                slots.append(slot + hint)
                positions.append((*cell, float(t)))
                frame_of.append(t)
        window = self.config.window
        told_words, places = self.words("deep.frames", text)
        first = len(told_words)
        visible = [list(range(m + 1)) for m in range(first)]
        for i in range(len(slots)):
            recent = [first + j for j in range(i + 1) if frame_of[j] > frame_of[i] - window]
            visible.append([*range(first), *recent])
        slots, positions = told_words + slots, places + positions
        hidden = self.transformer("deep.frames.transformer", slots, positions, visible, self.config.deep_layers)[first:]

        z = np.empty_like(u)
        log_prob = np.empty(num_frames)
        per_frame = len(hidden) // num_frames
        for t in range(num_frames):
            log_prob[t] = shallow[t][1]
            for n in range(num_tokens):
                mu, sigma = self.affine("deep", hidden[t * per_frame + n], n)
                if draft is not None:
                    mu = mu + self.weights["deep.draft_gate"] * draft[t][n]
                z[t, n] = (u[t, n] - mu) / sigma
                terms = -0.5 * z[t, n] ** 2 - 0.5 * math.log(2 * math.pi) - np.log(sigma)
                log_prob[t] += terms[: self.real(n)].sum()
        last = [hidden[(t + 1) * per_frame - 1] for t in range(num_frames)]
        return NaiveOutput(log_prob=log_prob, z=z, u=u, draft=draft, hidden=np.array(last))
