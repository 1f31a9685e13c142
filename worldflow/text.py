"""Prompts as what a flow is conditioned on: the last hidden states of a text encoder, a fixed number of tokens.

    tokens[i, :n] = encoder(prompt i) of n tokens,   tokens[i, n:] = 0,   mask[i] = [1] * n + [0] * (max_tokens - n)

Encoders of the T5 family (their encoder half) and of the BERT family are read by transformers. Padded places are zeros,
and no token attends to them: an embedding depends on its own prompt, not on the batch it was computed in, up to
rounding (MiniLM on a CPU: 3e-7 of its size in float32, and 3e-3 in bf16, whose numbers are off by 1e-2 anyway). That is
what the released STARFlow models are given, by `google/flan-t5-xl` with 128 tokens (image) or 256 (video); the empty
prompt, `""`, is the text of what is unconditional.

Embeddings are kept on disk (`worldflow.cache`), since an encoder is often larger than the flow that it serves, and a
caption is read many times: where all prompts are known, neither the encoder nor transformers is loaded.

References: Raffel et al., 2020, T5, arXiv 1910.10683. Devlin et al., 2019, BERT, arXiv 1810.04805. Gu et al., 2025,
STARFlow, arXiv 2506.06276, and STARFlow-V, arXiv 2511.20462.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from worldflow.cache import DiskCache, user_cache_folder
from worldflow.muon import has_bfloat16
from worldflow.text_files import INSTALL, T5_FAMILY, find_encoder

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32

__all__ = ["TextEmbedding", "TextEncoder", "starflow_prompt"]

_WITH_POOLING = ("albert", "bert", "camembert", "mpnet", "roberta", "xlm-roberta")


@dataclass(frozen=True, kw_only=True)
class TextEmbedding:
    """Prompts as tokens of a fixed number; `mask` is False, and `tokens` zero, where a prompt has no more tokens."""

    tokens: Float32[Tensor, "prompt token feature"]
    mask: Bool[Tensor, "prompt token"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor | slice) -> TextEmbedding:
        """Some of the prompts."""
        return TextEmbedding(tokens=self.tokens[rows], mask=self.mask[rows])

    def to(self, device: torch.device | str) -> TextEmbedding:
        """The same embedding on another device."""
        return TextEmbedding(tokens=self.tokens.to(device), mask=self.mask.to(device))


class TextEncoder:
    """A text encoder with its tokenizer; called with prompts, it gives their embeddings.

    It is loaded when a prompt comes that the cache does not know, and never trained. The first time that an encoder is
    named, its weights are read once to hash them, about a second per gigabyte.

    Args:
        model: A folder with `config.json`, weights (`model.safetensors`) and a tokenizer (`tokenizer.json`), or a name
            on the hub such as `"google/flan-t5-xl"`. A folder of that name goes first.
        max_tokens: Tokens of every embedding. Longer prompts are cut off, with a warning, shorter ones padded.
        device: Where to run it, and where embeddings are put.
        dtype: Type it computes in; by default bf16 where the device has it natively, else float32. Embeddings are
            float32 in any case.
        revision: On the hub, which branch, tag or commit; by default the main branch.
        local_files_only: Whether to leave the network alone: the hub's cache must hold the encoder then.
        cache_folder: Where to keep embeddings; by default `text` in `worldflow.cache.user_cache_folder()`:
            `$WORLDFLOW_CACHE`, else `$XDG_CACHE_HOME/worldflow`, else `~/.cache/worldflow`. Padding is not stored: a
            prompt of ten tokens takes 41 kB of flan-t5-xl in bf16.
        use_cache: Whether to keep embeddings at all.

    Raises:
        FileNotFoundError: If no encoder is there.
        ImportError: If a name on the hub is given and transformers is not installed.
        ValueError: If it is no encoder of the T5 or BERT family, a file is damaged, or an option does not fit it.

    Example:
        >>> encoder = TextEncoder("google/flan-t5-xl", max_tokens=256)  # doctest: +SKIP
        >>> embedding = encoder(["a red circle moves left", ""])  # doctest: +SKIP
        >>> embedding.tokens.shape, embedding.mask.sum(dim=1)  # doctest: +SKIP
        (torch.Size([2, 256, 2048]), tensor([6, 1]))
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        max_tokens: int = 128,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_folder: str | os.PathLike[str] | None = None,
        use_cache: bool = True,
    ) -> None:
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating type such as torch.bfloat16, got {dtype}")
        self._name = str(model)
        self._files = find_encoder(model, revision=revision, local_files_only=local_files_only)
        limit = self._files.max_positions
        if max_tokens < 1 or (limit is not None and max_tokens > limit):
            allowed = "at least 1" if limit is None else f"between 1 and {limit}, the positions that {model} has"
            raise ValueError(f"max_tokens must be {allowed}, got {max_tokens}")
        self._max_tokens = max_tokens
        self._device = torch.device(device)
        self._dtype = dtype or (torch.bfloat16 if has_bfloat16(self._device) else torch.float32)
        folder = user_cache_folder() / "text" if use_cache and cache_folder is None else cache_folder
        self._cache = DiskCache(folder) if use_cache and folder is not None else None

    @cached_property
    def identity(self) -> str:
        """Which encoder this is: a short text to store with a flow, which is of no use with another encoder.

        It is a hash of configuration, weights and tokenizer, wherever they lie. Number of tokens, device and dtype are
        no part of it.
        """
        return self._files.identity(self._cache)

    @property
    def feature_dim(self) -> int:
        """Length of the vector that stands for a token."""
        return self._files.feature_dim

    @property
    def max_tokens(self) -> int:
        """Tokens of every embedding, padding included."""
        return self._max_tokens

    @property
    def device(self) -> torch.device:
        """Where it runs, and where embeddings are put."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Type it computes in; embeddings are float32."""
        return self._dtype

    @property
    def is_loaded(self) -> bool:
        """Whether weights and tokenizer are in memory."""
        return "_loaded" in vars(self)

    def __repr__(self) -> str:
        return f"TextEncoder({self._name!r}, max_tokens={self.max_tokens}, dtype={self.dtype}, device={self.device})"

    def __call__(self, prompts: Sequence[str]) -> TextEmbedding:
        """Embed prompts.

        Args:
            prompts: Any number of texts. The empty text is one: what is left of it are the tokens that the encoder
                puts around every text, for T5 the one that ends it.

        Returns:
            Their embeddings in this order, `(prompt, token, feature)` with their mask. They carry no gradient.

        Raises:
            ImportError: If transformers is needed and not installed.
            TypeError: If `prompts` is a single text, or holds anything else than texts.
            ValueError: If the encoder's weights do not fit its configuration, or its numbers overflow `dtype`.
            OSError: If the cache cannot be written.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts must be a sequence of texts, got one text; write [{prompts[:40]!r}]")
        if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
            raise TypeError(f"prompts must be a sequence of texts, got one with a {type(wrong[0]).__name__} in it")
        rows = {prompt: self._recall(prompt) for prompt in dict.fromkeys(prompts)}
        unknown = [prompt for prompt, row in rows.items() if row is None]
        for prompt, row in self._compute(unknown):
            rows[prompt] = row
            self._keep(prompt, row)

        tokens = torch.zeros(len(prompts), self.max_tokens, self.feature_dim)
        mask = torch.zeros(len(prompts), self.max_tokens, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            row = rows[prompt]
            assert row is not None
            tokens[i, : len(row)] = row
            mask[i, : len(row)] = True
        return TextEmbedding(tokens=tokens, mask=mask).to(self.device)

    def _key(self, prompt: str) -> str:
        return json.dumps(["embedding", self.identity, str(self.dtype), self.max_tokens, prompt])

    def _recall(self, prompt: str) -> Float[Tensor, "token feature"] | None:
        stored = None if self._cache is None else self._cache.read(self._key(prompt))
        if stored is None:
            return None
        values = torch.frombuffer(bytearray(stored), dtype=self.dtype) if stored else torch.empty(0, dtype=self.dtype)
        return values.view(-1, self.feature_dim)

    def _keep(self, prompt: str, row: Float[Tensor, "token feature"]) -> None:
        if self._cache is not None:
            self._cache.write(self._key(prompt), row.contiguous().view(torch.uint8).numpy().tobytes())

    def _compute(self, prompts: Sequence[str]) -> Iterator[tuple[str, Float[Tensor, "token feature"]]]:
        """Prompts with the vectors of their own tokens, in `dtype` on the CPU; batches of like lengths."""
        if not prompts:
            return
        tokenizer, model = self._loaded
        ids = tokenizer(list(prompts), add_special_tokens=True, verbose=False)["input_ids"]
        if long := [i for i, row in enumerate(ids) if len(row) > self.max_tokens]:
            # no numbers that change from call to call: Python shows a warning of the same words once
            warnings.warn(
                f"some prompts have more than max_tokens={self.max_tokens} tokens and are cut off; "
                "raise max_tokens, or shorten them",
                stacklevel=3,
            )
            cut = tokenizer([prompts[i] for i in long], truncation=True, max_length=self.max_tokens)["input_ids"]
            for i, row in zip(long, cut, strict=True):
                ids[i] = row
        most = 1024 if self.device.type == "cpu" else 16384
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        while order:
            # as many of the longest as fit: memory runs out at the first batch or not at all
            size = max(1, most // max(1, len(ids[order[-1]])))
            batch, order = order[-size:], order[:-size]
            states = self._forward(model, [ids[i] for i in batch], padding=tokenizer.pad_token_id or 0)
            for i, row in zip(batch, states, strict=True):
                yield prompts[i], row

    @torch.no_grad()
    def _forward(self, model: nn.Module, ids: list[list[int]], *, padding: int) -> list[Float[Tensor, "token feature"]]:
        lengths = [len(row) for row in ids]
        if not max(lengths):  # a tokenizer that puts nothing around a text leaves nothing of an empty one
            return [torch.empty(0, self.feature_dim, dtype=self.dtype) for _ in ids]
        padded = torch.tensor([row + [padding] * (max(lengths) - len(row)) for row in ids], device=self.device)
        places = torch.arange(max(lengths), device=self.device)
        mask = places < torch.tensor(lengths, device=self.device)[:, None]
        states = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state.to("cpu", self.dtype)
        rows = [row[:length] for row, length in zip(states, lengths, strict=True)]
        if not all(row.isfinite().all() for row in rows):
            raise ValueError(
                f"the encoder gave numbers that are not finite in {self.dtype}; T5 overflows float16: use "
                "dtype=torch.bfloat16 or torch.float32. If it was one of these, its weights are damaged"
            )
        return rows

    @cached_property
    def _loaded(self) -> tuple[Any, nn.Module]:
        """Tokenizer and model, read from the files that `identity` was made of."""
        try:
            import transformers
        except ImportError as error:
            raise ImportError(
                f"a text encoder needs transformers, which is not installed; {INSTALL} "
                "(or only ask for prompts that the cache holds)"
            ) from error
        files = self._files
        kind = getattr(transformers, T5_FAMILY.get(files.kind, "AutoModel"))
        options = {"add_pooling_layer": False} if files.kind in _WITH_POOLING else {}
        try:
            # Loading draws from the global generator: borrow it, give it back.
            with _silent(transformers), torch.random.fork_rng(devices=[]):
                tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
                model, report = kind.from_pretrained(
                    files.folder,
                    local_files_only=True,
                    use_safetensors=files.weights[0].suffix == ".safetensors",
                    dtype=self.dtype,
                    output_loading_info=True,
                    **options,
                )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            raise ValueError(
                f"cannot load the text encoder at {files.folder}: {error}; copy or download it again"
            ) from error
        if absent := sorted(report["missing_keys"]):
            raise ValueError(
                f"the weights at {files.folder} lack {len(absent)} tensors of its configuration, "
                f"{', '.join(absent[:3])} among them; copy or download the encoder again"
            )
        return tokenizer, model.to(self.device).eval().requires_grad_(False)


def starflow_prompt(
    caption: str,
    *,
    frame_rate: int | None = None,
    noise_std: float | None = None,
    aspect_ratio: tuple[int, int] | None = None,
) -> str:
    r"""A caption in the words that the released STARFlow models were trained on.

    The image model takes the bare caption. The video model takes all three; where it is guided, its unconditional text
    is the empty caption in the same words. In training, where the first frame of a clip was left out, the caption began
    with `(extend) `.

    Args:
        caption: The caption; may be empty.
        frame_rate: Frames per second, 16 for the released video model; 0 for a still image.
        noise_std: Standard deviation of the noise on the latents, 0.5 there; told in whole thousandths, rounded down.
        aspect_ratio: Width and height in lowest terms, such as `(16, 9)`.

    Returns:
        The prompt.

    Raises:
        ValueError: If a number is negative, or the frame rate is not whole.

    Reference:
        Apple, 2025, the public repository apple/ml-starflow: `preprocess_text` in `utils/common.py` and its calls in
        `train.py` and `sample.py`; `configs/starflow-v_7B_t2v_caus_480p.yaml`.

    Example:
        >>> starflow_prompt("A corgi.", frame_rate=16, noise_std=0.5, aspect_ratio=(16, 9))
        'Noise Level 500:\nA video with 16 fps:\nA corgi.\n\n in a 16:9 aspect ratio.\n'
    """
    prompt = caption
    if frame_rate is not None:
        if frame_rate < 0 or frame_rate != int(frame_rate):
            raise ValueError(f"frame_rate must be a whole number of frames per second, 0 or more, got {frame_rate}")
        kind = f"A video with {int(frame_rate)} fps" if frame_rate else "An image"
        prompt = f"{kind}:\n{prompt}\n"
    if noise_std is not None:
        if noise_std < 0:
            raise ValueError(f"noise_std must not be negative, got {noise_std}")
        prompt = f"Noise Level {int(noise_std * 1000)}:\n{prompt}"
    if aspect_ratio is not None:
        width, height = aspect_ratio
        if width < 1 or height < 1:
            raise ValueError(f"aspect_ratio must be two positive numbers, width and height, got {aspect_ratio}")
        prompt = f"{prompt}\n in a {width}:{height} aspect ratio.\n"
    return prompt


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """No progress bar, and no table of the tensors that an encoder leaves out, while it is read; then as before."""
    logs = transformers.utils.logging
    verbosity, has_bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if has_bar:
            logs.enable_progress_bar()
