"""The ``model/`` folder: what was trained comes back bit for bit, or an error says why not."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_factory import draw_clips, join, scramble, small_config, tiny_llama, tiny_tokenizer
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from signfuse_dist import stages
from signfuse_dist.config import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
)
from signfuse_dist.errors import UserError
from signfuse_dist.files import STATE
from signfuse_dist.model import saved
from signfuse_dist.model.signfuse import SignFuse

TESTS = Path(__file__).resolve().parents[1]
LENGTHS = (5, 3, 8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A small model whose LLM lies in a folder."""
    folder = tmp_path_factory.mktemp("llm")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return small_config(llm=str(folder), prompt="translate the sign")


def run_of(config: ModelConfig) -> RunConfig:
    data = DataConfig(
        corpus="table", shards="shards", train_split="train", dev_split="dev", test_split="test",
        fps=None, frame_size=32, max_frames=8, language="en", bleu_tokenizer="13a",
        metric_preset="sacrebleu",
    )  # fmt: skip
    stage = StageConfig(name="finetune", epochs=1, learning_rate=1e-3, warmup_epochs=0)
    train = TrainConfig(micro_batch_size=1, precision="fp32", gradient_clipping=1.0)
    return RunConfig(
        name="test", data=data, model=config, loss=LossConfig(), stage=stage, train=train,
        evaluation=EvaluationConfig(),
    )  # fmt: skip


def finetuned(config: ModelConfig) -> SignFuse:
    """An untrained model of the last stage, LoRA included, with no weight at its start."""
    torch.manual_seed(0)
    model, _ = saved.build(config, language=True)
    stages.prepare(model, "finetune", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for part in (model.visual, model.skeletal, model.fusion, model.temporal):
        scramble(part)
    return model.eval()


@pytest.fixture
def folder(config: ModelConfig, tmp_path: Path) -> Path:
    saved.save(finetuned(config), run_of(config), tmp_path / "model")
    return tmp_path / "model"


def outputs(model: SignFuse) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found = model(join(draw_clips(LENGTHS)), "unimodal", True)
    return {
        "sign_embeddings": found.sign_embeddings,
        "negative_log_likelihood": found.negative_log_likelihood,
        "visual_summary": found.summaries[0],
    }


def test_a_fresh_process_computes_the_same_bit_for_bit(config: ModelConfig, tmp_path: Path) -> None:
    model = finetuned(config)
    saved.save(model, run_of(config), tmp_path / "model")
    program = (
        "import sys; from pathlib import Path; from safetensors.torch import save_file\n"
        "from model_factory import small_config; from signfuse_dist.model import saved\n"
        "from test_saved import outputs\n"
        "config = small_config(llm=sys.argv[2], prompt='translate the sign')\n"
        "model, _ = saved.build(config, language=True)\n"
        "model.language_model.add_lora(config)\n"
        "saved.load_into(Path(sys.argv[1]) / 'model', model)\n"
        "save_file(outputs(model.eval()), sys.argv[1] + '/outputs.safetensors')\n"
    )
    path = os.pathsep.join(map(str, (TESTS, TESTS / "unit", TESTS.parent)))
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), config.llm], check=True, timeout=120,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    theirs = load_file(tmp_path / "outputs.safetensors")
    for name, ours in outputs(model).items():
        assert torch.equal(ours, theirs[name]), name


def test_the_frozen_llm_is_not_stored_and_all_else_is(config: ModelConfig, folder: Path) -> None:
    stored = load_file(folder / "weights.safetensors")
    model = finetuned(config)
    own = {n for n in model.state_dict() if not n.startswith("language_model.") or "lora_" in n}
    assert stored.keys() == own
    assert sum("lora_" in name for name in stored) == 8  # two layers, q and v, A and B
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    assert state["stage"] == "finetune"
    assert state["config"]["model"]["dim"] == config.dim


def test_a_damaged_file_is_named(config: ModelConfig, folder: Path) -> None:
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged"):
        saved.load_into(folder, finetuned(config))
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing"):
        saved.load_into(folder, finetuned(config))


@pytest.mark.parametrize("key", ["files", "config"])
def test_a_state_that_leaves_out_what_it_must_say_is_refused(
    config: ModelConfig, folder: Path, key: str
) -> None:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    (folder / STATE).write_text(json.dumps({**state, key: {}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"state\.json"):
        saved.load_into(folder, finetuned(config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 32, "skeletal_channels": (4, 6, 8, 32)}, r"model\.dim was 16, is 32"),
        # The same shapes, another function of them:
        ({"num_heads": 4}, r"model\.num_heads was 2, is 4"),
        ({"scale_strides": (1, 1, 1)}, r"model\.scale_strides was \[1, 2, 4\], is \[1, 1, 1\]"),
    ],
)
def test_a_model_of_another_configuration_is_refused_with_what_differs(
    config: ModelConfig, folder: Path, changes: dict[str, Any], said: str
) -> None:
    other = small_config(llm=config.llm, prompt=config.prompt, **changes)
    with pytest.raises(UserError, match=said) as refused:
        saved.load_into(folder, finetuned(other))
    assert str(folder) in str(refused.value)


def test_the_llm_may_have_moved_and_be_asked_otherwise(
    config: ModelConfig, folder: Path, tmp_path: Path
) -> None:
    Path(config.llm).rename(tmp_path / "moved")
    try:
        moved = small_config(llm=str(tmp_path / "moved"), prompt="the sign")
        saved.load_into(folder, finetuned(moved))
    finally:
        (tmp_path / "moved").rename(config.llm)


def test_a_model_without_lora_does_not_take_one_with_it(config: ModelConfig, folder: Path) -> None:
    model, _ = saved.build(config, language=True)
    with pytest.raises(UserError, match="8 unknown"):
        saved.load_into(folder, model)


def test_only_a_stage_without_an_llm_may_miss_the_adapter(
    config: ModelConfig, tmp_path: Path
) -> None:
    encoders, _ = saved.build(config, language=False)
    saved.save(encoders, run_of(config), tmp_path / "model")
    model, _ = saved.build(config, language=True)
    saved.load_into(tmp_path / "model", model, may_miss=("adapter.",))
    with pytest.raises(UserError, match="tensors missing"):
        saved.load_into(tmp_path / "model", model)


def resnet(source: str) -> tuple[SignFuse, ModelConfig]:
    config = small_config(
        visual_backbone="resnet18", visual_width=64, visual_norm="frozen_batch",
        visual_weights=source,
    )  # fmt: skip
    return SignFuse(config, None), config


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_torchvision_are_read_from_a_file(
    tmp_path: Path, counters: bool, ending: str
) -> None:
    torch.manual_seed(3)
    theirs = resnet18(weights=None).state_dict()
    if not counters:  # as in files from before torchvision counted batches
        theirs = {n: t for n, t in theirs.items() if not n.endswith("num_batches_tracked")}
    path = tmp_path / f"resnet18.{ending}"
    torch.save(theirs, path) if ending == "pth" else save_file(theirs, path)
    model, config = resnet(str(path))
    saved.load_visual_weights(model, config)
    for name, tensor in model.visual.backbone.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, theirs[name]), name


class Bomb:
    """A pickle of this runs code when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_weights_file_that_would_run_code_is_refused(tmp_path: Path, form: str) -> None:
    path, hit = tmp_path / "weights.pth", tmp_path / "hit"
    bomb = {"conv1.weight": Bomb(hit)}
    torch.save(bomb, path) if form == "torch" else path.write_bytes(pickle.dumps(bomb))
    model, config = resnet(str(path))
    with pytest.raises(UserError, match=r"model\.visual_weights=.*cannot be read"):
        saved.load_visual_weights(model, config)
    assert not hit.exists()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"no weights", bytes(100)], ids=["empty", "text", "zeros"]
)
def test_a_file_that_holds_no_weights_is_refused(
    tmp_path: Path, ending: str, content: bytes
) -> None:
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(content)
    model, config = resnet(str(path))
    with pytest.raises(UserError, match=r"model\.visual_weights=.*cannot be read"):
        saved.load_visual_weights(model, config)


@pytest.mark.parametrize("value", [torch.ones(3), [1], {"model": {"conv1.weight": torch.ones(1)}}])
def test_a_file_of_something_else_than_weights_is_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "weights.pth"
    torch.save(value, path)
    model, config = resnet(str(path))
    with pytest.raises(UserError, match="holds no mapping of names to tensors"):
        saved.load_visual_weights(model, config)


def test_weights_that_are_missing_or_of_no_known_network_are_refused(tmp_path: Path) -> None:
    model, config = resnet(str(tmp_path / "absent.pth"))
    with pytest.raises(UserError, match="no such file"):
        saved.load_visual_weights(model, config)
    with pytest.raises(UserError, match="no ImageNet resnet10"):
        saved.load_visual_weights(model, small_config(visual_weights="imagenet"))
