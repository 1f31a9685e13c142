"""An encoder's files are found wherever they may lie; its identity is what they hold; what is missing is named."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from worldflow import text_files
from worldflow.cache import DiskCache
from worldflow.text_files import find_encoder

BERT = {"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 512, "_name_or_path": "here"}


def write_encoder(folder: Path, config: dict[str, Any] = BERT, *, shards: int = 0) -> Path:
    """The files of an encoder with a tensor for weights; nothing that transformers would load."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    tensor = np.arange(1000, dtype=np.float32)
    if shards:
        names = [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
        for i, name in enumerate(names):
            save_file({str(i): tensor + i}, folder / name)
        index = {"weight_map": {str(i): name for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file({"weight": tensor}, folder / "model.safetensors")
    return folder


def flip_byte(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    files = find_encoder(write_encoder(tmp_path / "a"))
    assert (files.kind, files.feature_dim, files.max_positions) == ("bert", 8, 512)
    assert files.weights == (tmp_path / "a" / "model.safetensors",)
    assert [path.name for path in files.tokenizer] == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("config", "feature_dim", "max_positions"),
    [
        ({"model_type": "t5", "d_model": 2048, "max_position_embeddings": 7}, 2048, None),
        ({"model_type": "umt5", "d_model": 4096}, 4096, None),
        ({"model_type": "distilbert", "dim": 768, "hidden_size": 1, "max_position_embeddings": 512}, 768, 512),
        # RoBERTa's 514 positions: two are never used
        ({"model_type": "roberta", "hidden_size": 768, "max_position_embeddings": 514, "pad_token_id": 1}, 768, 512),
        ({"model_type": "roberta", "hidden_size": 768, "max_position_embeddings": 514, "pad_token_id": 0}, 768, 513),
        ({"model_type": "mpnet", "hidden_size": 768, "max_position_embeddings": 514, "pad_token_id": 0}, 768, 512),
    ],
)
def test_width_and_positions(
    tmp_path: Path, config: dict[str, Any], feature_dim: int, max_positions: int | None
) -> None:
    files = find_encoder(write_encoder(tmp_path / "a", config))
    assert (files.feature_dim, files.max_positions) == (feature_dim, max_positions)


def test_shards_go_together_and_safetensors_go_first(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "a", shards=3)
    assert [path.name[:11] for path in find_encoder(folder).weights] == ["model-00001", "model-00002", "model-00003"]
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert len(find_encoder(folder).weights) == 3
    for path in folder.glob("*safetensors*"):
        path.unlink()
    assert find_encoder(folder).weights == (folder / "pytorch_model.bin",)


def test_a_copy_is_the_same_encoder(tmp_path: Path) -> None:
    first = find_encoder(write_encoder(tmp_path / "a", shards=2)).identity()
    assert first.startswith("bert-8-") and len(first) == len("bert-8-") + 16
    copy = write_encoder(tmp_path / "else" / "b", BERT | {"_name_or_path": "there", "torch_dtype": "x"}, shards=2)
    (copy / "README.md").write_text("anything")
    (copy / "vocab.txt").write_text("not read beside tokenizer.json")
    assert find_encoder(copy).identity() == first


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config", "tokenizer.json",
             "tokenizer_config.json", "special_tokens_map.json"],
)  # fmt: skip
def test_other_weights_or_another_tokenizer_is_another_encoder(tmp_path: Path, name: str) -> None:
    folder = write_encoder(tmp_path / "a", shards=2)
    before = find_encoder(folder).identity()
    if name == "config":
        (folder / "config.json").write_text(json.dumps(BERT | {"hidden_act": "relu"}))
    elif name.endswith(".json"):
        (folder / name).write_text('{"x": 1}')
    else:
        flip_byte(folder / name, at=-2000)
    assert find_encoder(folder).identity() != before


def test_weights_are_hashed_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def file_digest(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return original(file, name)

    original = text_files.hashlib.file_digest
    monkeypatch.setattr(text_files.hashlib, "file_digest", file_digest)
    folder, cache = write_encoder(tmp_path / "a"), DiskCache(tmp_path / "cache")
    files = find_encoder(folder)
    plain = files.identity()
    assert read == ["model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert files.identity(cache) == plain
    assert files.identity(cache) == plain
    assert len(read) == 9  # files written this very moment are not relied on

    later = text_files.time.time_ns() + 10_000_000_000
    monkeypatch.setattr(text_files.time, "time_ns", lambda: later)
    for _ in range(2):
        assert files.identity(cache) == plain
        assert len(read) == 12
    weights = folder / "model.safetensors"
    status = weights.stat()
    flip_byte(weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # `cp -p`, `rsync -t` and the like keep it
    assert files.identity(cache) != plain
    assert read[12:] == ["model.safetensors"]

    flip_byte(weights)
    for path in cache.folder.rglob("*"):
        if path.is_file():
            flip_byte(path)
    assert files.identity(cache) == plain  # a damaged hash is no hash


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no text encoder at .*nowhere: the folder does not exist; name a f"):
        find_encoder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        find_encoder(f"{tmp_path}/nowhere")
    folder = write_encoder(tmp_path / "pipeline" / "text_encoder")
    with pytest.raises(FileNotFoundError, match=r"no config.json; did you mean .*pipeline/text_encoder\?"):
        find_encoder(tmp_path / "pipeline")
    with pytest.raises(FileNotFoundError, match=r"no config.json; name a folder with config.json, weights"):
        (tmp_path / "empty").mkdir()
        find_encoder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"revision='main' chooses on the hub, but .* is a folder here; leave it out"):
        find_encoder(folder, revision="main")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer; it must hold config.json"):
        find_encoder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks \['model.safetensors'\]; copy or download it again"):
        find_encoder(folder)
    sharded = write_encoder(tmp_path / "sharded", shards=2)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks \['model-00002-of-00002.safetensors'\]"):
        find_encoder(sharded)
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": [')
    with pytest.raises(ValueError, match=r"cannot read .*index.json: .*download the encoder again"):
        find_encoder(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .*config.json"),
        ("[]", "cannot read .*config.json"),
        ("{}", "cannot read .*config.json: KeyError"),
        ('{"model_type": "gpt2"}', "a model of type 'gpt2'; .* the T5 or the BERT family; these types are: mt5, t5, u"),
        ('{"model_type": "robreta"}', r"'robreta'; .* family; did you mean 'roberta'\?"),
        ('{"model_type": "t5", "hidden_size": 8}', "must give 'd_model' as a number"),
    ],
)
def test_a_configuration_that_is_none_is_told(tmp_path: Path, text: str, message: str) -> None:
    folder = write_encoder(tmp_path / "a")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_encoder(folder)


def test_names_are_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'someone/model'.*no folder in .*call once without local_files_only"):
        find_encoder("someone/model", local_files_only=True)
    repository, commit = tmp_path / "hub" / "models--someone--model", "0123456789" * 4
    write_encoder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = find_encoder("someone/model", local_files_only=True)
    assert found.folder == repository / "snapshots" / commit
    assert find_encoder("someone/model", revision=commit, local_files_only=True) == found
    with pytest.raises(FileNotFoundError, match="'someone/model'"):
        find_encoder("someone/model", revision="other", local_files_only=True)
    local = write_encoder(tmp_path / "someone" / "model")
    assert find_encoder("someone/model", local_files_only=True).folder.samefile(local)  # a folder goes first


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("only_pickles", [False, True])
def test_only_the_files_that_are_read_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, only_pickles: bool
) -> None:
    remote = write_encoder(tmp_path / "remote", shards=shards)
    for name in ("model.fp16.safetensors", "tf_model.h5", "README.md", "pytorch_model.bin"):
        (remote / name).write_bytes(b"")
    wanted = sorted(path.name for path in remote.glob("model*-of-*"))
    wanted += ["model.safetensors.index.json"] if shards else ["model.safetensors"]
    if only_pickles:
        for path in remote.glob("model*"):
            path.unlink()
        wanted = ["pytorch_model.bin"]

    def snapshot_download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        revision = "commit" if (tmp_path / "commit").exists() else "v2"  # a branch may move on between two calls
        assert (name, options) == ("someone/model", {"revision": revision, "local_files_only": False})
        (tmp_path / "commit").mkdir(exist_ok=True)
        for path in remote.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, tmp_path / "commit")
        return str(tmp_path / "commit")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    files = find_encoder("someone/model", revision="v2")
    assert files.folder == tmp_path / "commit"
    wanted += ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in files.folder.iterdir()) == sorted(wanted)


@pytest.mark.parametrize(
    ("local_files_only", "advice"),
    [(False, "check the name and the network"), (True, "call once without local_files_only")],
)
def test_a_hub_that_says_no_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_files_only: bool, advice: str
) -> None:
    def snapshot_download(name: str, **options: Any) -> str:
        assert options["local_files_only"] is local_files_only
        raise ConnectionError("the network is down\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"\(ConnectionError: the network is down\); {advice}"):
        find_encoder("someone/model", local_files_only=local_files_only)


def test_names_need_the_extra_and_folders_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    find_encoder(write_encoder(tmp_path / "a"))
    with pytest.raises(ImportError, match=r"pip install 'worldflow\[text\]'"):
        find_encoder("someone/model")
