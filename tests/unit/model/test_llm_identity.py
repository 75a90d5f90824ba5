"""The reference to the frozen LLM: what its fingerprint notices, what it does not depend on."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.model_factory import tiny_llama
from signfuse_dist.errors import UserError
from signfuse_dist.model import llm_identity
from signfuse_dist.model.llm_identity import fingerprint, refer


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def resave(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_copy_has_the_fingerprint_of_the_original(llm: Path, tmp_path: Path) -> None:
    shutil.copytree(llm, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(llm)
    assert refer(str(llm), None) == llm_identity.LLMReference(None, fingerprint(llm))


def test_one_changed_weight_of_a_small_llm_is_noticed(llm: Path) -> None:
    before = fingerprint(llm)
    tensors = load_file(llm / "model.safetensors")
    name = sorted(tensors)[3]
    tensors[name].view(-1)[1] += 1e-3
    resave(llm, tensors)
    assert fingerprint(llm) != before


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "missing"])
def test_other_tensors_are_noticed(llm: Path, change: str) -> None:
    before = fingerprint(llm)
    tensors = load_file(llm / "model.safetensors")
    name = "model.embed_tokens.weight"
    tensor = tensors.pop(name)
    if change == "name":
        tensors["model.embeddings.weight"] = tensor
    elif change == "dtype":
        tensors[name] = tensor.bfloat16()
    elif change == "shape":
        tensors[name] = tensor.T.contiguous()
    resave(llm, tensors)
    assert fingerprint(llm) != before


def test_a_changed_configuration_is_noticed_and_a_newer_transformers_is_not(llm: Path) -> None:
    before = fingerprint(llm)
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert fingerprint(llm) == before
    (llm / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert fingerprint(llm) != before


def test_how_tensors_are_spread_over_files_does_not_count(llm: Path) -> None:
    before = fingerprint(llm)
    tensors = load_file(llm / "model.safetensors")
    (llm / "model.safetensors").unlink()
    index = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({n: t for n, t in tensors.items() if index[n] == file}, llm / file)
    (llm / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert fingerprint(llm) == before


def test_a_fine_tuned_large_tensor_is_noticed_by_a_fraction_of_its_bytes(llm: Path) -> None:
    """And a byte between the blocks is not: that is said where the fingerprint is."""
    torch.manual_seed(0)
    large = torch.randn(1000, 1000)
    marks = []
    for changed in (large, large + 1e-4, large.index_fill(0, torch.tensor([10]), 0.0)):
        resave(llm, {"w": changed})
        marks.append(fingerprint(llm))
    assert marks[0] != marks[1]
    assert marks[0] == marks[2]


def test_pickled_weights_are_compared_without_being_opened(llm: Path) -> None:
    (llm / "model.safetensors").unlink()
    (llm / "pytorch_model.bin").write_bytes(b"a pickle")
    before = fingerprint(llm)
    (llm / "pytorch_model.bin").write_bytes(b"b pickle")
    assert fingerprint(llm) != before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        struct.pack("<Q", 1 << 60) + b"{}",
        b"\0" * 16,
        struct.pack("<Q", 13) + b'{"w": "junk"}',
        struct.pack("<Q", 61) + b'{"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
    ],
)
def test_weights_that_are_no_weights_are_refused(llm: Path, content: bytes) -> None:
    (llm / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a readable LLM"):
        fingerprint(llm)


def test_an_index_cannot_name_files_of_another_folder(llm: Path) -> None:
    (llm / "model.safetensors").rename(llm.parent / "secret.safetensors")
    index: dict[str, Any] = {"weight_map": {"w": "../secret.safetensors"}}
    (llm / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        fingerprint(llm)


def test_a_folder_without_weights_is_refused(llm: Path) -> None:
    (llm / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds neither"):
        fingerprint(llm)


def test_an_llm_of_the_hub_is_known_by_its_commit(
    llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--someone--llm" / "snapshots" / "abc123"
    shutil.copytree(llm, snapshot)

    def cached(name: str, file: str, revision: str | None) -> str | None:
        return str(snapshot / file) if (name, revision) == ("someone/llm", None) else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert refer("someone/llm", None) == llm_identity.LLMReference("abc123", fingerprint(llm))
    with pytest.raises(UserError, match="not in the hub's cache"):
        refer("someone/other", None)
