"""Released TARFlow, STARFlow and STARFlow-V models, written down literally: float64 NumPy, one row, loops over slots.

Nothing is shared with the package, not even a name: this reads a released state dict (reference key names) and its
configuration, follows the equations in their order, and makes no attempt to be fast. The three kinds:

- `"tarflow"` (arXiv 2412.06329): images in pixel patches, learned positions, a class label, `sigma = exp(a)`;
- `"image"` (STARFlow, arXiv 2506.06276): latent images, rotary positions, a start token, text in the deep block;
- `"video"` (STARFlow-V, arXiv 2511.20462): the same with frames; shallow blocks see one frame, the deep block all.

Every block maps a sequence of tokens by `z_j = (x_j - mu_j) / sigma_j`, with `mu_j, sigma_j` read from tokens before j.
An image is a video of one frame throughout.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["NaiveReleased", "random_weights"]

HEAD_DIM = 64
DENOISER_LAYERS = 8
DENOISER_STEP = 0.3
UNIT_SOFTPLUS = 0.541324854612918  # softplus of this is 1

# The released choices the equations below take for granted; a configuration that says otherwise is another model.
ASSUMED = {
    "head_dim": HEAD_DIM,
    "rope": True,
    "sos": True,
    "use_softplus": True,
    "use_final_norm": True,
    "seq_order": "L2R",
    "shallow_block_local": True,
    "local_attn_window": None,
}

Cell = tuple[float, float, float]  # row, column, third axis


class NaiveReleased:
    """One released model, one row at a time.

    Args:
        kind: "tarflow", "image" or "video", as a golden `config.json` says.
        weights: The state dict, with the reference's key names.
        config: The reference's constructor arguments (`config` inside a golden `config.json`).

    Raises:
        ValueError: For an unknown kind, or a configuration outside the released ones.
    """

    def __init__(self, kind: str, weights: dict[str, np.ndarray], config: dict) -> None:
        if kind not in ("tarflow", "image", "video"):
            raise ValueError(f'kind must be "tarflow", "image" or "video", got {kind!r}')
        for name, value in ASSUMED.items():
            if config.get(name, value) != value:
                raise ValueError(f"only {name} = {value!r} is written down here, got {config[name]!r}")
        if config.get("txt_size") and not config.get("cond_top_only"):
            raise ValueError("only text in the deep block alone (cond_top_only) is written down here")
        if kind == "video" and (config["num_blocks"] % 2 or not config.get("txt_size")):
            raise ValueError("a video model has an even number of blocks (its deep one keeps the order) and reads text")
        self.kind = kind
        self.config = config
        self.weights = {name: np.asarray(array, dtype=np.float64) for name, array in weights.items()}

    # Public: the density, its inverse, the denoiser.

    def forward(
        self, x: np.ndarray, text: np.ndarray | None = None, label: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Latent and exact log-density of one row.

            log p(x_t) = sum over the tokens of frame t of [log N(z; 0, I) - sum over blocks ln sigma]

        Args:
            x: `(time, channel, row, column)` for a video, `(channel, row, column)` otherwise.
            text: Text embeddings `(text token, text channel)`, for models that read text.
            label: Class of a class-conditional TARFlow; `None` stands for the mean of all class embeddings.

        Returns:
            `z`, laid out as `x` (TARFlow: `(token, channel)`), and the log-density in nats: `(time,)` for a video,
            `()` otherwise.
        """
        z, log_det = self._latent(x, text, label)
        normal = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        log_prob = normal.sum(axis=(1, 2)) + log_det.sum(axis=1)
        if self.kind == "tarflow":
            return z[0], log_prob[0]
        if self.kind == "image":
            return self._untokenize(z, x.shape[-2:])[0], log_prob[0]
        return self._untokenize(z, x.shape[-2:]), log_prob

    def loss(self, x: np.ndarray, text: np.ndarray | None = None, label: int | None = None) -> float:
        """Training loss of one row: `mean(z^2) / 2 - sum over blocks of mean(log-det)`, in nats per dimension.

        The means run over all dimensions of the row. It lacks the constant `ln(2 pi) / 2`.
        """
        z, log_det = self._latent(x, text, label)
        return float(0.5 * (z**2).mean() - log_det.sum() / z.size)

    def sample(
        self,
        noise: np.ndarray,
        text: np.ndarray | None = None,
        text_uncond: np.ndarray | None = None,
        label: int | None = None,
        guidance: float = 0.0,
        context: np.ndarray | None = None,
    ) -> np.ndarray:
        """The row whose latent is `noise`, token by token, as `forward` inverted.

        Args:
            noise: Standard normal, laid out as the `z` of `forward`.
            text: As in `forward`.
            text_uncond: Text of the unconditional branch; needed where `guidance` is not 0 and the model reads text.
            label: As in `forward`.
            guidance: Weight of the guidance; 0 draws from the model's own density.
            context: First frames of a video `(context frame, channel, row, column)`: they are kept, only the frames
                after them are drawn, and the noise of the first `len(context)` frames is not used.

        Returns:
            The row, laid out as the `x` of `forward`.
        """
        if self.kind == "tarflow":
            frames, size = noise[None], (self.config["img_size"],) * 2
        else:
            frames, size = self._tokenize(noise), noise.shape[-2:]
        grid = self._grid(size)
        known = []  # tokens of u, the deep block's sequence, that are given
        if context is not None:
            if self.kind != "video":
                raise ValueError(f"context frames are for a video model, this is {self.kind!r}")
            u = self._tokenize(context)
            for block in range(self.config["num_blocks"] - 1):
                u, _ = self._apply(block, u, grid, None, None)
            known = list(u.reshape(-1, u.shape[-1]))

        for block in reversed(range(self.config["num_blocks"])):
            parts = []
            for sequence in self._sequences(block, frames):
                prefix = list(known) if self._is_deep(block) else []
                cells = self._cells(grid, len(sequence))
                for z in self._in_order(block, sequence)[len(prefix) :]:
                    mu, sigma = self._affine(block, prefix, cells, text, label)[-1]
                    if guidance and (self.kind == "tarflow" or self._is_deep(block)):
                        mu_u, sigma_u = self._affine(block, prefix, cells, text_uncond, None)[-1]
                        mu, sigma = self._guide(mu, sigma, mu_u, sigma_u, guidance)
                    prefix.append(mu + sigma * z)
                parts.append(self._in_order(block, np.array(prefix)))
            frames = np.concatenate(parts).reshape(frames.shape)
        x = self._untokenize(frames, size)
        if context is not None:
            x[: len(context)] = context  # they went through the shallow blocks and back: only the rounding goes
        return x if self.kind == "video" else x[0]

    def score(self, x: np.ndarray, text: np.ndarray | None = None) -> np.ndarray:
        """What the denoiser's network says of a noisy row: `noise_std` times the gradient of the NLL, learned.

        The sequence is `[text ; tokens]`, without a start token. With A = `temporal_causal` and G =
        `denoiser_window`, a token of frame q sees the text and the G + 1 frames `q + A - 1 - G .. q + A - 1`; a text
        token sees the text and the first A frames. Without A (images) every slot sees every slot.

        Args:
            x: As in `forward`.
            text: As in `forward`.

        Returns:
            An array shaped like `x`.
        """
        name = "learnable_self_denoiser"
        if f"{name}.proj_in.weight" not in self.weights:
            raise ValueError("these weights have no denoiser")
        frames = self._tokenize(x)
        T, N, D = frames.shape
        ahead = self.config.get("temporal_causal", 0) - 1
        window = self.config.get("denoiser_window")
        slots, positions = self._text(name, text)
        frame_of = [-1] * len(slots)
        for cell, token in zip(self._cells(self._grid(x.shape[-2:]), T * N), frames.reshape(T * N, D), strict=True):
            slots.append(self._linear(f"{name}.proj_in", token))
            positions.append(cell)
            frame_of.append(int(cell[2]))
        visible = []
        for q in frame_of:
            last = max(q, 0) + ahead if ahead >= 0 else T
            first = 0 if q < 0 or window is None or ahead < 0 else q + ahead - window
            visible.append([j for j, k in enumerate(frame_of) if k < 0 or first <= k <= last])
        hidden = self._transformer(name, slots, positions, visible)
        out = [self._linear(f"{name}.proj_out", state) for state in hidden[-T * N :]]
        return self._untokenize(np.array(out).reshape(T, N, D), x.shape[-2:]).reshape(x.shape)

    def denoise(self, x: np.ndarray, text: np.ndarray | None = None) -> np.ndarray:
        """The noisy row `x` without its noise, `x - 0.3 * score(x)`: the step of the released models."""
        return x - DENOISER_STEP * self.score(x, text)

    # Private: layouts. Frames are (time, token, channel); tokens go row by row.

    def _tokenize(self, x: np.ndarray) -> np.ndarray:
        p = self.config["patch_size"]
        frames = x if x.ndim == 4 else x[None]
        T, C, H, W = frames.shape
        tokens = []
        for t in range(T):
            for row in range(0, H, p):
                for column in range(0, W, p):
                    patch = frames[t, :, row : row + p, column : column + p]
                    tokens.append(patch.ravel() if self.kind == "tarflow" else patch.transpose(1, 2, 0).ravel())
        return np.array(tokens, dtype=np.float64).reshape(T, (H // p) * (W // p), C * p * p)

    def _untokenize(self, frames: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        p = self.config["patch_size"]
        H, W = size
        T, _, D = frames.shape
        C = D // p**2
        x = np.empty((T, C, H, W))
        for t in range(T):
            tokens = iter(frames[t])
            for row in range(0, H, p):
                for column in range(0, W, p):
                    token = next(tokens)
                    if self.kind == "tarflow":
                        patch = token.reshape(C, p, p)
                    else:
                        patch = token.reshape(p, p, C).transpose(2, 0, 1)
                    x[t, :, row : row + p, column : column + p] = patch
        return x

    def _grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        return size[0] // self.config["patch_size"], size[1] // self.config["patch_size"]

    def _training_side(self) -> int:
        return self.config.get("pt_seq_len") or self.config["img_size"] // self.config["patch_size"]

    def _cells(self, grid: tuple[int, int], length: int) -> list[Cell]:
        """Rotary positions of `length` slots from the first frame on; the grid is scaled to the training grid's area.

        They go with the slot: a reversed block reads its first token (the frame's last) at row 0, column 0.
        """
        rows, columns = grid
        scale = self._training_side() / math.sqrt(rows * columns)
        frame = [(row * scale, column * scale) for row in range(rows) for column in range(columns)]
        return [(*frame[j % len(frame)], float(j // len(frame))) for j in range(length)]

    def _is_deep(self, block: int) -> bool:
        return block == self.config["num_blocks"] - 1

    def _sequences(self, block: int, frames: np.ndarray) -> list[np.ndarray]:
        """The deep block reads all frames as one sequence, a shallow block each frame as if it were the first."""
        return [frames.reshape(-1, frames.shape[-1])] if self._is_deep(block) else list(frames)

    def _in_order(self, block: int, tokens: np.ndarray) -> np.ndarray:
        """Tokens in the order of a block, or back: TARFlow reverses the odd blocks, the others the even ones."""
        is_reversed = block % 2 == (1 if self.kind == "tarflow" else 0)
        return tokens[::-1] if is_reversed else tokens

    # Private: the flow.

    def _latent(self, x: np.ndarray, text: np.ndarray | None, label: int | None) -> tuple[np.ndarray, np.ndarray]:
        """`z` as frames, and the log-determinant of every token, `(time, token)`."""
        frames = self._tokenize(x)
        log_det = np.zeros(frames.shape[:2])
        for block in range(self.config["num_blocks"]):
            frames, added = self._apply(block, frames, self._grid(x.shape[-2:]), text, label)
            log_det += added
        return frames, log_det

    def _apply(
        self, block: int, frames: np.ndarray, grid: tuple[int, int], text: np.ndarray | None, label: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One block forwards: frames and the log-determinant of every token, both in the order of the image."""
        outs, log_dets = [], []
        for sequence in self._sequences(block, frames):
            tokens = self._in_order(block, sequence)
            cells = self._cells(grid, len(tokens))
            maps = self._affine(block, list(tokens[:-1]), cells, text, label)
            out = [(token - mu) / sigma for token, (mu, sigma) in zip(tokens, maps, strict=True)]
            outs.append(self._in_order(block, np.array(out)))
            log_dets.append(self._in_order(block, np.array([-np.log(sigma).sum() for _, sigma in maps])))
        return np.concatenate(outs).reshape(frames.shape), np.concatenate(log_dets).reshape(frames.shape[:2])

    def _affine(
        self, block: int, tokens: list[np.ndarray], cells: list[Cell], text: np.ndarray | None, label: int | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`(mu, sigma)` of the first `len(tokens) + 1` tokens of a sequence, read from its first tokens."""
        name = f"blocks.{block}"
        if self.kind == "tarflow":
            D = self.weights[f"{name}.proj_in.weight"].shape[1]
            positions = self._in_order(block, self.weights[f"{name}.pos_embed"])
            classes = self.weights.get(f"{name}.class_embed")
            slots = []
            for token, position in zip(tokens, positions, strict=False):
                slot = self._linear(f"{name}.proj_in", token) + position
                if classes is not None:
                    slot = slot + (classes.mean(axis=0) if label is None else classes[label])[0]
                slots.append(slot)
            visible = [list(range(i + 1)) for i in range(len(slots))]
            hidden = self._transformer(name, slots, None, visible) if slots else []
            outs = [np.zeros(2 * D)]  # no start token: the first token passes unchanged
            outs += [self._linear(f"{name}.proj_out", state) for state in hidden]
            return [(out[D:], np.exp(out[:D])) for out in outs]

        start = self.weights[f"{name}.sos_embed"][0, 0]
        slots, positions = self._text(name, text) if self._is_deep(block) else ([], [])
        num_text = len(slots)
        for token, cell in zip([start, *tokens], cells, strict=False):
            slots.append(self._linear(f"{name}.proj_in", token))
            positions.append(cell)
        visible = [list(range(i + 1)) for i in range(len(slots))]
        maps = []
        for state in self._transformer(name, slots, positions, visible)[num_text:]:
            out = self._linear(f"{name}.proj_out", state)
            if self.config.get("soft_clip"):
                out = self.config["soft_clip"] * np.tanh(out / self.config["soft_clip"])
            D = len(out) // 2
            maps.append((out[D:], np.log1p(np.exp(out[:D] + UNIT_SOFTPLUS))))
        return maps

    def _guide(
        self, mu_c: np.ndarray, sigma_c: np.ndarray, mu_u: np.ndarray, sigma_u: np.ndarray, weight: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """TARFlow extrapolates `mu` and `ln sigma`; the others divide the densities where that narrows them."""
        if self.kind == "tarflow":
            log_sigma = np.log(sigma_c) + weight * (np.log(sigma_c) - np.log(sigma_u))
            return mu_c + weight * (mu_c - mu_u), np.exp(log_sigma)
        s = np.minimum(sigma_c / sigma_u, 1) ** 2
        d = 1 + weight - weight * s
        return ((1 + weight) * mu_c - weight * s * mu_u) / d, sigma_c / np.sqrt(d)

    # Private: the transformer.

    def _text(self, name: str, text: np.ndarray | None) -> tuple[list[np.ndarray], list[Cell]]:
        """Slots and rotary positions of the text prefix: text token m of n sits at m / n along the third axis."""
        if f"{name}.proj_txt.weight" not in self.weights:
            return [], []
        if text is None:
            raise ValueError(f"{name} reads text: give text (and text_uncond with guidance)")
        slots = [self._linear(f"{name}.proj_txt", np.asarray(token, dtype=np.float64)) for token in text]
        return slots, [(0.0, 0.0, m / len(text) * self._training_side()) for m in range(len(text))]

    def _transformer(
        self, name: str, slots: list[np.ndarray], positions: list[Cell] | None, visible: list[list[int]]
    ) -> list[np.ndarray]:
        """Final hidden state of every slot; `visible[i]` lists the slots that slot `i` sees."""
        hidden = list(slots)
        layer = 0
        while f"{name}.attn_blocks.{layer}.attention.qkv.weight" in self.weights:
            block = f"{name}.attn_blocks.{layer}"
            heads = [slice(first, first + HEAD_DIM) for first in range(0, len(hidden[0]), HEAD_DIM)]
            queries, keys, values = [], [], []
            for i, slot in enumerate(hidden):
                qkv = self._linear(f"{block}.attention.qkv", self._layer_norm(f"{block}.attention.norm", slot))
                q, k, v = np.split(qkv, 3)
                if positions is not None:
                    q = np.concatenate([self._rotate(q[head], positions[i]) for head in heads])
                    k = np.concatenate([self._rotate(k[head], positions[i]) for head in heads])
                queries.append(q)
                keys.append(k)
                values.append(v)
            after = []
            for i, slot in enumerate(hidden):
                mixed = []
                for head in heads:
                    scores = np.array([queries[i][head] @ keys[j][head] for j in visible[i]]) / math.sqrt(HEAD_DIM)
                    chances = np.exp(scores - scores.max())
                    chances /= chances.sum()
                    mixed.append(chances @ np.array([values[j][head] for j in visible[i]]))
                x = slot + self._linear(f"{block}.attention.proj", np.concatenate(mixed))
                inner = self._linear(f"{block}.mlp.main.0", self._layer_norm(f"{block}.mlp.norm", x))
                after.append(x + self._linear(f"{block}.mlp.main.2", gelu(inner)))
            hidden = after
            layer += 1
        gain = self.weights.get(f"{name}.final_norm.weight")
        if gain is None:  # TARFlow
            return hidden
        return [x / math.sqrt((x**2).mean() + 1e-6) * (1 + gain) for x in hidden]

    def _rotate(self, vector: np.ndarray, position: Cell) -> np.ndarray:
        """Turn pairs of consecutive channels: 12 with the row, 12 with the column, 8 with the third axis.

        A model without a text axis turns 16 with the row and 16 with the column.
        """
        pairs = HEAD_DIM // 2
        third = pairs // 4 if self.config.get("txt_size", 0) else 0
        spatial = (pairs - third) // 2
        angles = [position[0] * 10000 ** (-k / spatial) for k in range(spatial)]
        angles += [position[1] * 10000 ** (-k / spatial) for k in range(spatial)]
        angles += [position[2] * 10000 ** (-k / third) for k in range(third)]
        out = np.empty_like(vector)
        p, q = vector[0::2], vector[1::2]
        out[0::2] = p * np.cos(angles) - q * np.sin(angles)
        out[1::2] = q * np.cos(angles) + p * np.sin(angles)
        return out

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def _layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centered = x - x.mean()
        normal = centered / math.sqrt((centered**2).mean() + 1e-5)
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))


def random_weights(kind: str, config: dict, seed: int) -> dict[str, np.ndarray]:
    """A random float32 state dict with the reference's key names, shapes and scales, dead weights included.

    Args:
        kind: "tarflow", "image" or "video".
        config: The reference's constructor arguments.
        seed: Of the generator.

    Returns:
        A new state dict.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def normal(name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
        weights[name] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

    def linear(name: str, out_dim: int, in_dim: int) -> None:
        bound = in_dim**-0.5
        weights[f"{name}.weight"] = rng.uniform(-bound, bound, (out_dim, in_dim)).astype(np.float32)
        bias = rng.uniform(-bound, bound, out_dim) + 0.05 * rng.standard_normal(out_dim)
        weights[f"{name}.bias"] = bias.astype(np.float32)

    def layers(name: str, num_layers: int, width: int) -> None:
        for layer in range(num_layers):
            block = f"{name}.attn_blocks.{layer}"
            for norm in (f"{block}.attention.norm", f"{block}.mlp.norm"):
                normal(f"{norm}.weight", (width,), 0.05, mean=1.0)
                normal(f"{norm}.bias", (width,), 0.05)
            linear(f"{block}.attention.qkv", 3 * width, width)
            linear(f"{block}.attention.proj", width, width)
            linear(f"{block}.mlp.main.0", 4 * width, width)
            linear(f"{block}.mlp.main.2", width, 4 * width)

    p = config["patch_size"]
    D = config["in_channels"] * p**2
    num_blocks = config["num_blocks"]
    text_size = config.get("txt_size", 0)
    if kind == "tarflow":
        num_tokens = (config["img_size"] // p) ** 2
        num_slots = num_tokens
    else:
        num_tokens = (config.get("pt_seq_len") or config["img_size"] // p) ** 2
        num_slots = num_tokens + text_size
    for i in range(num_blocks):
        name = f"blocks.{i}"
        is_deep = i == num_blocks - 1
        width = config["channels"]
        if is_deep:
            width = config.get("top_block_channels", width)
        num_layers = config["layers_per_block"]
        linear(f"{name}.proj_in", width, D)
        layers(name, num_layers if isinstance(num_layers, int) else num_layers[i], width)
        if kind == "tarflow":
            normal(f"{name}.pos_embed", (num_tokens, width), 0.3)
            if config.get("num_classes", 0):
                normal(f"{name}.class_embed", (config["num_classes"], 1, width), 0.3)
        else:
            normal(f"{name}.sos_embed", (1, 1, D), 1.0)
            normal(f"{name}.final_norm.weight", (width,), 0.05)
            if is_deep and text_size:
                linear(f"{name}.proj_txt", width, config["txt_dim"])
        std = 0.03 if kind == "tarflow" else 0.05
        normal(f"{name}.proj_out.weight", (2 * D, width), std)
        normal(f"{name}.proj_out.bias", (2 * D,), 1.5 * std)
        weights[f"{name}.attn_mask"] = np.tril(np.ones((num_slots, num_slots), dtype=np.float32))
    if config.get("learnable_self_denoiser"):
        name = "learnable_self_denoiser"
        width = config["channels"]
        linear(f"{name}.proj_in", width, D)
        if config.get("conditional_denoiser") and text_size:
            linear(f"{name}.proj_txt", width, config["txt_dim"])
        layers(name, DENOISER_LAYERS, width)
        normal(f"{name}.final_norm.weight", (width,), 0.05)
        normal(f"{name}.proj_out.weight", (D, width), 0.05)
        normal(f"{name}.proj_out.bias", (D,), 0.075)
    if kind != "tarflow":
        for table in ("freqs_cos", "freqs_sin"):
            weights[f"feat_rope.{table}"] = np.zeros((num_slots, HEAD_DIM), dtype=np.float32)
    weights["var"] = np.ones((num_tokens, D), dtype=np.float32)
    return weights
