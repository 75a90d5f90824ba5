"""Networks of torchvision as encoders of frames: what is written, what is read, what is refused."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from helpers.model_factory import draw_clips, join, small_config
from signfuse_dist.config import LossConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.flops import StepFlops
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.torchvision_models import (
    _classifier,
    _fitted,
    main,
    write_torchvision_model,
)
from signfuse_dist.model.vision import load_configured, load_vision_model, without_weights
from signfuse_dist.objective import prepare, set_mode

SMALLEST = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(architecture: str, cache: Path, old_names: bool = False) -> nn.Module:
    """Put a random network's weights where torch keeps what it has downloaded."""
    torch.manual_seed(0)
    network: nn.Module = models.get_model(architecture, weights=None).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.get_buffer("running_mean"), std=0.1)
            nn.init.uniform_(part.get_buffer("running_var"), 0.5, 1.5)
    state = network.state_dict()
    if old_names:
        state = OrderedDict(
            (re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", n), t) for n, t in state.items()
        )
    torch.save(state, cache / file_of(architecture))
    return network


def file_of(architecture: str) -> str:
    return str(models.get_model_weights(architecture)["DEFAULT"].url.rpartition("/")[2])


def write(folder: Path, side: int | None = None) -> Path:
    write_torchvision_model(SMALLEST, "DEFAULT", folder)
    if side is not None:  # smaller pictures than torchvision's, which fit the tests' frames
        file = folder / "preprocessor_config.json"
        said = json.loads(file.read_text())
        file.write_text(json.dumps(said | {"size": {"height": side, "width": side}}))
    return folder


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [(SMALLEST, "fc"), ("mobilenet_v3_small", "classifier.3"), ("regnet_y_400mf", "fc")],
)
def test_a_vector_is_what_the_last_linear_layer_reads(
    architecture: str, layer: str, cache: Path, tmp_path: Path
) -> None:
    theirs, read = publish(architecture, cache), list[Tensor]()
    theirs.get_submodule(layer).register_forward_pre_hook(lambda _, given: read.append(given[0]))
    config = write_torchvision_model(architecture, "DEFAULT", tmp_path / "model")
    model = load_vision_model(str(tmp_path / "model"), None, "--model")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        theirs(images)
        torch.testing.assert_close(model(images), read[0], rtol=0, atol=0)
    assert config.hidden_size == model.output_dim == read[0].shape[1]


def test_pictures_are_shown_as_the_weights_were_trained(cache: Path, tmp_path: Path) -> None:
    publish(SMALLEST, cache)
    model = load_vision_model(str(write(tmp_path / "model")), None, "--model")
    assert (model.picture.side, model.window) == (224, 1)
    assert (model.mean, model.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_network_whose_layers_were_renamed_since_is_read(cache: Path, tmp_path: Path) -> None:
    theirs = publish("densenet121", cache, old_names=True)
    write_torchvision_model("densenet121", "DEFAULT", tmp_path / "model")
    ours = load_vision_model(str(tmp_path / "model"), None, "--model").network.network
    expected = {n: t for n, t in theirs.state_dict().items() if not n.startswith("classifier.")}
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[n]) for n, t in ours.state_dict().items())


@pytest.mark.parametrize(
    "architecture",
    [
        *("alexnet", "convnext_tiny", "efficientnet_b0", "efficientnet_v2_s", "maxvit_t"),
        *("mobilenet_v2", "mobilenet_v3_large", "resnext50_32x4d", "swin_t", "swin_v2_t"),
        *("vgg11_bn", "vit_b_32"),
    ],
)
def test_only_the_classifier_is_left_out_and_no_other_name_changes(architecture: str) -> None:
    with torch.device("meta"):
        network = models.get_model(architecture, weights=None)
    classifier = _classifier(network)
    state = network.state_dict()
    kept = _fitted(state, classifier)
    assert {n.rpartition(".")[0] for n in state.keys() - kept.keys()} == {classifier}
    assert all(tensor is state[name] for name, tensor in kept.items())


def test_a_vit_takes_pictures_of_its_own_side_alone(tmp_path: Path, cache: Path) -> None:
    publish("vit_b_32", cache)
    write_torchvision_model("vit_b_32", "DEFAULT", tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    said = json.loads(file.read_text()) | {"size": {"height": 64, "width": 64}}
    file.write_text(json.dumps(said))
    with pytest.raises(UserError, match="does not take the 64 x 64 pixels"):
        load_vision_model(str(tmp_path / "model"), None, "--model")


def test_it_is_counted_without_memory(cache: Path, tmp_path: Path) -> None:
    publish("regnet_y_400mf", cache)
    write_torchvision_model("regnet_y_400mf", "DEFAULT", tmp_path / "model")
    config = small_config(visual_backbone=f"hf:{tmp_path / 'model'}")
    with torch.device("meta"):
        model = load_configured(config)
    assert all(p.is_meta for p in model.parameters())
    assert model.output_dim == 440


def test_loading_one_draws_no_random_number_of_the_run(cache: Path, tmp_path: Path) -> None:
    publish("regnet_y_400mf", cache)
    write_torchvision_model("regnet_y_400mf", "DEFAULT", tmp_path / "model")
    before = torch.get_rng_state()
    load_vision_model(str(tmp_path / "model"), None, "--model")
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_are_not_finite_are_called_damaged(cache: Path, tmp_path: Path) -> None:
    publish(SMALLEST, cache)
    file = write(tmp_path / "model") / "model.safetensors"
    state = load_file(file)
    state["network.conv1.0.weight"][0] = torch.nan
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match="not finite of a picture: its weights are damaged"):
        load_vision_model(str(tmp_path / "model"), None, "--model")


def test_trained_it_is_part_of_the_model_and_needs_no_folder(cache: Path, tmp_path: Path) -> None:
    publish(SMALLEST, cache)
    folder = write(tmp_path / "model", side=32)
    torch.manual_seed(0)
    config = small_config(visual_backbone=f"hf:{folder}", visual_training="full")
    model, batch = SignFuse(config, None), join(draw_clips([5, 3]))
    prepare(model, "contrastive", LossConfig())
    set_mode(model, "contrastive")
    assert model.visual is not None
    assert model.vision is not None
    named = dict(model.visual.backbone.named_parameters())
    assert all(p.requires_grad for p in named.values())
    assert not any(part.training for part in model.vision.network.modules())
    model.encode(batch).visual.square().sum().backward()
    assert [name for name, p in named.items() if p.grad is None] == []
    cost = StepFlops(model, "unimodal", False)
    assert cost.uncounted == {}
    assert cost(batch)["visual"].forward > 1e6
    model.eval().save_pretrained(tmp_path / "saved")
    folder.rename(tmp_path / "gone")
    again = SignFuse.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(again.encode(batch).visual, model.encode(batch).visual)


def test_frozen_it_is_named_and_another_in_its_place_refused(cache: Path, tmp_path: Path) -> None:
    publish(SMALLEST, cache)
    folder = write(tmp_path / "model", side=32)
    model = SignFuse(small_config(visual_backbone=f"hf:{folder}"), None).eval()
    model.save_pretrained(tmp_path / "saved")
    SignFuse.from_pretrained(tmp_path / "saved")
    state = torch.load(cache / file_of(SMALLEST), weights_only=True)
    state["conv1.0.weight"] += 1
    torch.save(state, cache / file_of(SMALLEST))
    folder.rename(tmp_path / "gone")
    write(folder, side=32)
    with pytest.raises(UserError, match="another vision model now"):
        SignFuse.from_pretrained(tmp_path / "saved")


def test_what_cannot_be_written_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="did you mean 'convnext_tiny'"):
        write_torchvision_model("convnext_tinny", "DEFAULT", tmp_path / "model")
    with pytest.raises(UserError, match="'squeezenet1_0' is not one of"):
        write_torchvision_model("squeezenet1_0", "DEFAULT", tmp_path / "model")
    with pytest.raises(UserError, match="torchvision has IMAGENET1K_V1, DEFAULT of"):
        write_torchvision_model(SMALLEST, "IMAGENET1K_V9", tmp_path / "model")
    with pytest.raises(UserError, match="is there; give the name of a new folder"):
        write_torchvision_model(SMALLEST, "DEFAULT", tmp_path)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"shufflenet.*cannot be downloaded: no network"):
        write_torchvision_model(SMALLEST, "DEFAULT", tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Runs:
    """A pickle that makes a file when it is read as one."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


def test_code_in_a_cached_file_is_not_run(cache: Path, tmp_path: Path) -> None:
    torch.save({"fc.weight": Runs(tmp_path / "ran")}, cache / file_of(SMALLEST))
    with pytest.raises(UserError, match="cannot be read: it holds something else than tensors"):
        write_torchvision_model(SMALLEST, "DEFAULT", tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_cached_weights_that_are_damaged_or_of_another_network_are_named(
    cache: Path, tmp_path: Path
) -> None:
    file = cache / file_of(SMALLEST)
    publish(SMALLEST, cache)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{file} cannot be read: .* Remove it"):
        write_torchvision_model(SMALLEST, "DEFAULT", tmp_path / "model")
    publish("mobilenet_v3_small", cache)
    (cache / file_of("mobilenet_v3_small")).rename(file)
    with pytest.raises(UserError, match=r"shufflenet.*is of another model configuration"):
        write_torchvision_model(SMALLEST, "DEFAULT", tmp_path / "model")
    state = publish(SMALLEST, cache).state_dict()
    state["conv1.0.weight"][0] = torch.nan
    torch.save(state, file)
    with pytest.raises(UserError, match="not finite"):
        write_torchvision_model(SMALLEST, "DEFAULT", tmp_path / "model")
    torch.save([1], file)
    with pytest.raises(UserError, match="holds no mapping of names to tensors"):
        write_torchvision_model(SMALLEST, "DEFAULT", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_configuration_names_no_other_network(cache: Path, tmp_path: Path) -> None:
    publish(SMALLEST, cache)
    described = load_vision_model(str(write(tmp_path / "model")), None, "--model").described
    described["config"]["architecture"] = "quantized_resnet50"
    with pytest.raises(UserError, match="'quantized_resnet50' is no classifier of torchvision"):
        without_weights(described, "config.json")


def test_the_command_says_what_it_wrote(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(SMALLEST, cache)
    assert main([SMALLEST, str(tmp_path / "model")]) == 0
    assert "1024 numbers a frame of 224 x 224 pixels" in capsys.readouterr().out
    assert len({file.stat().st_mode for file in (tmp_path / "model").iterdir()}) == 1
    assert main([SMALLEST, str(tmp_path / "model")]) == 2
    assert "give the name of a new folder" in capsys.readouterr().err
