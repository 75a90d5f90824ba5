"""A saved model: what was trained comes back bit for bit, or an error says why not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from helpers.little_checkpoints import sign
from helpers.model_factory import draw_clips, join, small_config
from helpers.repository import ROOT
from helpers.saved_models import MAX_FRAMES, config_of, finetuned, untrained, write_llm
from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.files import STATE, read_state
from signfuse_dist.model import place, saved
from signfuse_dist.model.llm_identity import LLMReference
from signfuse_dist.model.saved import SignFuseConfig
from signfuse_dist.model.signfuse import SignFuse

TESTS = ROOT / "tests"
LENGTHS = (5, 3, 8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A small model whose LLM lies in a folder."""
    return config_of(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def folder(config: ModelConfig, tmp_path: Path) -> Path:
    finetuned(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def outputs(model: SignFuse) -> dict[str, torch.Tensor]:
    batch = join(draw_clips(LENGTHS))
    with torch.no_grad():
        found = model(batch, "unimodal", True)
    return {
        "sign_embeddings": found.sign_embeddings,
        "negative_log_likelihood": found.negative_log_likelihood,
        "visual_summary": found.summaries[0],
        "tokens": model.generate(batch, num_beams=2, max_new_tokens=6),
    }


def test_a_fresh_process_computes_the_same_bit_for_bit(config: ModelConfig, tmp_path: Path) -> None:
    model = finetuned(config)
    model.save_pretrained(tmp_path / "model")
    program = (
        "import sys; from safetensors.torch import save_file\n"
        "from signfuse_dist import SignFuse\n"
        "from test_saved import outputs\n"
        "model = SignFuse.from_pretrained(sys.argv[1] + '/model')\n"
        "assert not model.training\n"
        "save_file(outputs(model), sys.argv[1] + '/outputs.safetensors')\n"
    )
    path = os.pathsep.join(map(str, (TESTS, Path(__file__).parent, TESTS.parent)))
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    theirs = load_file(tmp_path / "outputs.safetensors")
    for name, ours in outputs(model).items():
        assert torch.equal(ours, theirs[name]), name


def test_the_folder_is_what_users_of_transformers_and_peft_know(
    config: ModelConfig, folder: Path
) -> None:
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "config.json",
        "model.safetensors",
        STATE,
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    read = SignFuseConfig.from_pretrained(folder)
    assert isinstance(read, PreTrainedConfig)
    assert AutoConfig.from_pretrained(folder) == read
    assert SignFuseConfig.from_dict(read.to_dict()) == read
    assert read == finetuned(config).config
    assert read.model == config
    assert (read.model_type, read.max_frames, read.llm_commit) == ("signfuse", MAX_FRAMES, None)


def test_the_frozen_llm_is_not_stored_and_all_else_is(config: ModelConfig, folder: Path) -> None:
    model = finetuned(config)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == {n for n in model.state_dict() if not n.startswith("language_model.")}
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 8  # two layers, q and v, A and B
    assert all("lora_" in name for name in adapter)


def test_the_adapter_is_one_that_peft_loads_onto_the_llm(config: ModelConfig, folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(config.llm)
    theirs = PeftModel.from_pretrained(base, str(folder / "adapter"))
    assert theirs.peft_config["default"].base_model_name_or_path == config.llm
    ours: Any = finetuned(config).language_model
    tokens = torch.tensor([[0, 5, 7, 3]])
    plain = AutoModelForCausalLM.from_pretrained(config.llm)(tokens).logits
    assert torch.equal(theirs(tokens).logits, ours.model(tokens).logits)
    assert not torch.equal(theirs(tokens).logits, plain)


def test_a_loaded_model_saves_what_it_was_loaded_from(folder: Path, tmp_path: Path) -> None:
    SignFuse.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert read_state(tmp_path / "again") == read_state(folder)


def test_generated_tokens_are_those_of_the_translator_and_decode(
    config: ModelConfig, folder: Path
) -> None:
    model = SignFuse.from_pretrained(folder)
    batch = join(draw_clips(LENGTHS))
    tokens = model.generate(batch, num_beams=1, max_new_tokens=5)
    assert tokens.shape[0] == 3
    assert tokens.shape[1] <= 5
    assert tokens.dtype == torch.long
    tokenizer = AutoTokenizer.from_pretrained(config.llm)
    assert model.tokenizer is not None
    for row in tokens.tolist():
        until_end = row[: row.index(1)] if 1 in row else row
        expected = tokenizer.decode(until_end, skip_special_tokens=True).strip()
        assert model.tokenizer.decode(row) == expected
    with pytest.raises(UserError, match="did you mean 'num_beams'"):
        model.generate(batch, num_beam=2)
    with pytest.raises(UserError, match="max_new_tokens: 0 is not at least 1"):
        model.generate(batch, max_new_tokens=0)


def test_clips_longer_than_what_it_was_trained_on_are_refused_before_the_model(
    folder: Path,
) -> None:
    model = SignFuse.from_pretrained(folder)
    reached: list[Any] = []
    for part in (model.visual, model.skeletal):
        assert part is not None
        part.register_forward_pre_hook(lambda module, inputs: reached.append(module))
    batch = join(draw_clips([3, MAX_FRAMES + 1]))
    for run in (lambda: model.generate(batch), lambda: model(batch, "unimodal", True)):
        with pytest.raises(UserError, match=r"(?s)9 frames of data.max_frames.*clip 1: 10 frames"):
            run()
    assert reached == []
    model.generate(join(draw_clips([MAX_FRAMES])), max_new_tokens=1)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "adapter/adapter_model.safetensors", "config.json"]
)
def test_a_damaged_or_missing_file_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        SignFuse.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        SignFuse.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors"])
def test_numbers_that_are_not_finite_and_files_that_are_none_are_named(
    folder: Path, name: str
) -> None:
    """With valid checksums, as a script that edits a model leaves them."""
    tensors = load_file(folder / name)
    odd = sorted(tensors)[0]
    tensors[odd].view(-1)[0] = float("inf")
    save_file(tensors, folder / name)
    sign(folder)
    with pytest.raises(UserError, match="1 tensors hold numbers that are not finite") as refused:
        SignFuse.from_pretrained(folder)
    assert str(folder / name) in str(refused.value)
    assert odd in str(refused.value)
    (folder / name).write_bytes(bytes(80))
    sign(folder)
    with pytest.raises(UserError, match=f"{name} is damaged: it is no whole safetensors file"):
        SignFuse.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["[]", "null", "[" * 60_000, '{"a":' * 900 + "0" + "}" * 900, '{"dim": ' + "9" * 5000]
)
def test_a_configuration_of_any_shape_is_an_error_by_name(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    sign(folder)
    with pytest.raises(UserError, match=f"{folder}: its config.json cannot be read"):
        SignFuse.from_pretrained(folder)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change ``config.json`` and its checksum, as somebody who means it could."""
    values = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in values.items() if value is not ...}
    from signfuse_dist.files import checksum

    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    del state["state_sha256"]  # it is changed on purpose
    state["files"]["config.json"] = checksum(folder / "config.json")
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim": "wide"}, "model.dim: 'wide' is not an int"),
        ({"llm": ...}, "model.llm: missing"),
        ({"numheads": 3}, "unknown key 'numheads'; did you mean 'num_heads'"),
        ({"fusion": "mystery"}, "model.fusion: 'mystery' is not one of cmfa"),
        # The same shapes but for one part:
        ({"scale_kernels": [1, 3, 11]}, "of another shape"),
        ({"streams": "visual"}, "unknown"),
        ({"fusion": "sum"}, "unknown"),
        ({"lora_rank": 3}, "of another shape"),
        ({"lora_targets": ["q_proj"]}, "4 unknown"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    folder: Path, change: dict[str, Any], said: str
) -> None:
    rewrite(folder, **change)
    with pytest.raises(UserError, match=said) as refused:
        SignFuse.from_pretrained(folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_state_that_leaves_out_what_it_must_say_is_refused(folder: Path, name: str) -> None:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    del state["state_sha256"]  # it is changed on purpose
    del state["files"][name]
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(UserError, match=f"lists no {name}"):
        SignFuse.from_pretrained(folder)


def test_another_llm_under_the_same_name_is_noticed(config: ModelConfig, tmp_path: Path) -> None:
    there = tmp_path / "llm"
    shutil.copytree(config.llm, there)
    finetuned(small_config(llm=str(there), prompt=config.prompt)).save_pretrained(tmp_path / "m")
    SignFuse.from_pretrained(tmp_path / "m")
    shutil.rmtree(there)
    write_llm(there, seed=1)
    with pytest.raises(UserError, match="is another LLM now") as refused:
        SignFuse.from_pretrained(tmp_path / "m")
    assert str(there) in str(refused.value)
    SignFuse.from_pretrained(tmp_path / "m", llm=config.llm)  # where the right one has moved


def test_the_commit_that_was_trained_with_is_loaded(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the folder were a name of the hub, whose newest commit may be another one by now."""
    known = saved.refer(config.llm, None).fingerprint
    monkeypatch.setattr(saved, "refer", lambda name, revision: LLMReference("c0ffee", known))
    finetuned(config).save_pretrained(tmp_path / "model")
    asked: list[str | None] = []
    load = saved.load_language_model

    def spy(numbers: ModelConfig, *others: Any) -> Any:
        asked.append(numbers.llm_revision)
        return load(numbers, *others)

    monkeypatch.setattr(saved, "load_language_model", spy)
    SignFuse.from_pretrained(tmp_path / "model")
    SignFuse.from_pretrained(tmp_path / "model", llm_revision="v2")
    assert asked == ["c0ffee", "v2"]


def test_only_where_and_how_may_change_where_a_model_is_loaded(
    config: ModelConfig, folder: Path
) -> None:
    batch = join(draw_clips(LENGTHS))
    chunked = SignFuse.from_pretrained(folder, visual_chunk=2)
    whole = SignFuse.from_pretrained(folder)
    assert chunked.built_from.visual_chunk == 2
    torch.testing.assert_close(chunked.encode(batch).visual, whole.encode(batch).visual)
    with pytest.raises(UserError, match="'num_heads'"):
        SignFuse.from_pretrained(folder, num_heads=4)


def test_a_name_that_is_no_folder_and_not_on_the_hub_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="no folder of a saved model"):
        SignFuse.from_pretrained("runs/absent/finetune/model")


def test_a_name_of_the_hub_is_downloaded_at_its_revision(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert SignFuse.from_pretrained("someone/signs", revision="v1").max_frames == MAX_FRAMES
    assert asked == [("someone/signs", "v1")]


def test_the_encoders_alone_load_without_an_llm_and_cannot_translate(
    config: ModelConfig, tmp_path: Path
) -> None:
    nowhere = small_config(llm=str(tmp_path / "absent"))
    untrained(nowhere, language=False).save_pretrained(tmp_path / "encoders")
    model = SignFuse.from_pretrained(tmp_path / "encoders")
    assert model.language_model is None
    with pytest.raises(UserError, match="without an LLM cannot translate"):
        model.generate(join(draw_clips([3])))


def test_a_folder_of_something_else_is_not_replaced(config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        finetuned(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds something else"):
        finetuned(config).save_pretrained(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    finetuned(config).save_pretrained(tmp_path / "empty")
    finetuned(config).save_pretrained(tmp_path / "empty")  # a saved model is replaced


def test_an_llm_that_cannot_be_named_is_not_saved(tmp_path: Path) -> None:
    from helpers.model_factory import small_model

    with pytest.raises(UserError, match="cannot be named"):
        small_model().save_pretrained(tmp_path / "model")


class Bomb:
    """A pickle of this runs code when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_weights_in_the_folder_are_never_opened(folder: Path, tmp_path: Path) -> None:
    hit = tmp_path / "hit"
    for name in ("pytorch_model.bin", "adapter/adapter_model.bin"):
        torch.save({"w": Bomb(hit)}, folder / name)
    SignFuse.from_pretrained(folder)
    assert not hit.exists()
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        SignFuse.from_pretrained(folder)
    assert not hit.exists()


def test_only_a_relative_folder_of_an_llm_is_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert saved.is_nowhere_else("llm")
    assert not saved.is_nowhere_else(str(tmp_path / "llm"))
    assert not saved.is_nowhere_else("owner/llm")


def trained_whole(config: ModelConfig) -> SignFuse:
    model = finetuned(dataclasses.replace(config, llm_training="full"))
    with torch.no_grad():
        for parameter in model.language_model.parameters():  # type: ignore[union-attr]
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_an_llm_that_was_trained_lies_in_the_model_and_comes_back_bit_for_bit(
    config: ModelConfig, tmp_path: Path
) -> None:
    """Also from the model that was loaded, and under the name of another place."""
    model = trained_whole(config)
    model.save_pretrained(tmp_path / "first")
    said = SignFuseConfig.from_pretrained(tmp_path / "first")
    assert (said.llm, said.llm_trained, said.llm_commit) == (place.OWN_LLM, True, None)
    assert not (tmp_path / "first" / "adapter").exists()
    assert said.llm_fingerprint not in (None, model.llm_reference.fingerprint)  # type: ignore[union-attr]
    (tmp_path / "first").rename(tmp_path / "moved")
    SignFuse.from_pretrained(tmp_path / "moved").save_pretrained(tmp_path / "second")
    shutil.rmtree(tmp_path / "moved")
    again = SignFuse.from_pretrained(tmp_path / "second")
    assert outputs(again).keys() == outputs(model).keys()
    for name, ours in outputs(model).items():
        assert torch.equal(ours, outputs(again)[name]), name
    plain = outputs(finetuned(config))["negative_log_likelihood"]
    assert not torch.equal(outputs(again)["negative_log_likelihood"], plain)
    assert AutoTokenizer.from_pretrained(tmp_path / "second" / "llm")("the sign").input_ids


def test_an_llm_that_was_trained_has_no_other_in_its_place(
    config: ModelConfig, tmp_path: Path
) -> None:
    trained_whole(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="was trained with it and lies in it; no other"):
        SignFuse.from_pretrained(tmp_path / "model", llm=config.llm)
    (tmp_path / "model" / STATE).write_text("{}")
    with pytest.raises(UserError):
        SignFuse.from_pretrained(tmp_path / "model")
