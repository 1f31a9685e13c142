"""Where a text encoder's files lie, and which encoder they are.

A folder as transformers writes it: `config.json`, the weights (`model.safetensors`, in one file or in shards with an
index; `pytorch_model.bin` where there is nothing better) and the tokenizer (`tokenizer.json`, or a vocabulary). A name
that is no folder is looked up on the hub, and its files are kept in the hub's own cache.

The identity of an encoder is a hash of what these files hold, wherever they lie: a copy in another folder, or on
another machine, is the same encoder; weights that were trained further, or another tokenizer, are not. Nothing of it
needs transformers, so that a machine that finds all its prompts in the cache need not have it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldflow.cache import DiskCache
from worldflow.hints import did_you_mean

__all__ = ["BERT_FAMILY", "INSTALL", "T5_FAMILY", "EncoderFiles", "find_encoder"]

INSTALL = "run `pip install 'worldflow[text]'`"
T5_FAMILY = {"mt5": "MT5EncoderModel", "t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
"""From a configuration's `model_type` to the class that holds its encoder alone."""
BERT_FAMILY = (
    "albert",
    "bert",  # MiniLM is one
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
"""Model types whose plain model is an encoder."""

_POSITIONS_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_SAYS_NOTHING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
_EXPECTED = "config.json, weights (model.safetensors) and a tokenizer (tokenizer.json)"


@dataclass(frozen=True, kw_only=True)
class EncoderFiles:
    """A text encoder's files.

    Args:
        folder: Where they lie.
        config: What `config.json` holds.
        weights: The files that its weights are read from.
        tokenizer: The files that its tokenizer is read from.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    tokenizer: tuple[Path, ...]

    @property
    def kind(self) -> str:
        """The model type, `t5` or `bert` for example."""
        return self.config["model_type"]

    @property
    def feature_dim(self) -> int:
        """Length of the vector that stands for a token."""
        return int(self.config[_width_name(self.kind)])

    @property
    def max_positions(self) -> int | None:
        """Most tokens that the encoder has positions for; None where it counts distances, as T5 does."""
        positions = self.config.get("max_position_embeddings")
        if self.kind in T5_FAMILY or positions is None:
            return None
        if self.kind in _POSITIONS_AFTER_PADDING:  # their first position is the one after the padding token's number
            padding = 1 if self.kind == "mpnet" else int(self.config.get("pad_token_id", 1))
            return int(positions) - padding - 1
        return int(positions)

    def identity(self, cache: DiskCache | None = None) -> str:
        """A short name that equal files share, wherever they lie.

        Args:
            cache: Where to keep the hashes of the weights, so that large ones are read once only. A file that changes
                is read again.

        Returns:
            Model type, width and 16 hexadecimal digits (64 bits of blake2b), such as `bert-384-0123456789abcdef`.
        """
        config = {name: value for name, value in self.config.items() if name not in _SAYS_NOTHING}
        digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8)
        for path in (*self.weights, *self.tokenizer):
            digest.update(f"\n{path.name} {_file_hash(path, cache)}".encode())
        return f"{self.kind}-{self.feature_dim}-{digest.hexdigest()}"


def find_encoder(
    model: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> EncoderFiles:
    """Find a text encoder's files, in a folder or on the hub.

    Args:
        model: A folder, or a name on the hub such as `"google/flan-t5-xl"`. A folder of that name goes first.
        revision: On the hub, which branch, tag or commit; by default the main branch. A folder has none.
        local_files_only: Whether to leave the network alone: the hub's cache must hold the files then.

    Returns:
        The files.

    Raises:
        FileNotFoundError: If they are not there, or the hub cannot be reached.
        ImportError: If a name on the hub is given and transformers is not installed.
        ValueError: If a file is damaged, or it is no encoder of the T5 or BERT family.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if not isinstance(model, str) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
            raise FileNotFoundError(
                f"no text encoder at {folder}: the folder does not exist; name a folder with {_EXPECTED}, "
                "or a name on the hub"
            )
        folder = _from_hub(model, revision, local_files_only)
    elif revision is not None:
        raise ValueError(f"revision={revision!r} chooses on the hub, but {model} is a folder here; leave it out")
    config = _read_config(folder)
    weights, missing = _weights(folder)
    vocabularies = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else _VOCABULARIES
    tokenizer = tuple(folder / name for name in (*vocabularies, *_TOKENIZER) if (folder / name).is_file())
    if missing:
        raise FileNotFoundError(f"the text encoder at {folder} lacks {missing}; copy or download it again")
    if not any(path.name in vocabularies for path in tokenizer):
        raise FileNotFoundError(f"the text encoder at {folder} has no tokenizer; it must hold {_EXPECTED}")
    return EncoderFiles(folder=folder, config=config, weights=weights, tokenizer=tokenizer)


def _from_hub(name: str, revision: str | None, local_files_only: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no folder here, and to look it up on the hub takes transformers, which is not installed; "
            f"{INSTALL}, or name a folder"
        ) from error

    def download(*patterns: str, at: str | None) -> Path:
        options = {"local_files_only": local_files_only, "allow_patterns": list(patterns)}
        return Path(snapshot_download(name, revision=at, **options))

    try:
        folder = download("config.json", "tokenizer.json", *_VOCABULARIES, *_TOKENIZER, *_WEIGHTS[:2], at=revision)
        commit = folder.name  # the branch may move on between two calls
        found, missing = _weights(folder)
        if not found:
            download(*_WEIGHTS[2:], at=commit)
            found, missing = _weights(folder)
        if found and missing:  # an index tells the shards
            download(*missing, at=commit)
    except (OSError, ValueError) as error:  # all that the hub's errors are
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error) else type(error).__name__
        advice = (
            "call once without local_files_only and with a network"
            if local_files_only
            else "check the name and the network"
        )
        raise FileNotFoundError(
            f"no text encoder {name!r}: it is no folder in {Path.cwd()}, and the hub gave none ({reason}); "
            f"{advice}, or give a folder with {_EXPECTED}"
        ) from error
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        inside = sorted(found.parent.name for found in folder.glob("*/config.json"))
        hint = f"did you mean {folder / inside[0]}?" if inside else f"name a folder with {_EXPECTED}"
        raise FileNotFoundError(f"no text encoder at {folder}: it holds no config.json; {hint}")
    try:
        config = json.loads(path.read_text())
        kind = config["model_type"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {error!r}; copy or download the encoder again") from error
    known = (*T5_FAMILY, *BERT_FAMILY)
    if kind not in known:
        raise ValueError(
            f"{folder} holds a model of type {kind!r}; a text encoder must be of the T5 or the BERT family"
            + did_you_mean(str(kind), known, otherwise=f"these types are: {', '.join(known)}")
        )
    if not isinstance(config.get(_width_name(kind)), int):
        raise ValueError(f"{path} must give {_width_name(kind)!r} as a number; copy or download the encoder again")
    return config


def _width_name(kind: str) -> str:
    return "d_model" if kind in T5_FAMILY else "dim" if kind == "distilbert" else "hidden_size"


def _weights(folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """The files of weights that go first, and the names of those that are missing."""
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        return (), [_WEIGHTS[0]]
    if found.suffix != ".json":
        return (found,), []
    try:
        names = sorted(set(json.loads(found.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot read {found}: {error!r}; copy or download the encoder again") from error
    return tuple(folder / name for name in names), [name for name in names if not (folder / name).is_file()]


def _file_hash(path: Path, cache: DiskCache | None) -> str:
    status = path.resolve().stat()
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    key = f"sha256 {path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    if cache is not None and (known := cache.read(key)):
        return known.decode()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file changed a moment ago may change again within the same tick of the clock, and look the same.
    if cache is not None and time.time_ns() - changed > 2_000_000_000:
        cache.write(key, digest.encode())
    return digest
