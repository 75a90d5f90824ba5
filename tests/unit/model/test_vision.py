"""Vision models of transformers as encoders of frames: what a vector is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.vision_models import MEAN, PICTURES, SIDE, STD, write_vision_model
from signfuse_dist.errors import UserError
from signfuse_dist.model.vision import (
    FrameVectors,
    VisionModel,
    load_vision_model,
    nearest,
    unreached,
    windows,
    without_weights,
)


def frames(count: int, size: int = SIDE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def vectors_of(model: VisionModel, shown: np.ndarray, **settings: object) -> np.ndarray:
    given: dict = {"frame_size": shown.shape[1], **settings}
    return FrameVectors("m", model, torch.device("cpu"), **given)(shown)


@pytest.mark.parametrize("family", PICTURES)
def test_a_vector_is_what_transformers_own_model_makes_of_a_normalised_picture(
    tmp_path: Path, family: str
) -> None:
    from transformers import AutoConfig, AutoModel

    folder = write_vision_model(tmp_path / family, family)
    model = load_vision_model(str(folder), None, "--model m")
    side = 28 if family == "dinov2" else SIDE
    assert model.picture.side == side
    shown = frames(3, side)
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (MEAN, STD))
    images = (torch.from_numpy(shown).permute(0, 3, 1, 2) / 255 - mean) / std
    known = AutoConfig.from_pretrained(folder)
    own = AutoModel.from_pretrained(folder, config=getattr(known, "vision_config", known)).eval()
    with torch.no_grad():
        out = own(pixel_values=images)
    if family == "classifier":  # its file has no pooling, so its tokens' mean stands for it
        expected = out.last_hidden_state.mean(dim=1)
    else:
        expected = out.pooler_output.flatten(1)
    found = vectors_of(model, shown, frames_at_once=2)
    assert found.shape == (3, 12) == expected.shape
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_larger_frames_are_made_smaller_and_smaller_ones_are_refused(tmp_path: Path) -> None:
    model = load_vision_model(str(write_vision_model(tmp_path / "c", "clip")), None, "--model c")
    even = np.repeat(np.repeat(frames(2, SIDE // 4), 8, axis=1), 8, axis=2)
    assert vectors_of(model, even).shape == (2, 12)
    with pytest.raises(UserError, match=r"(?s)32 x 32 pixels.*data\.frame_size 24.*32 or more"):
        vectors_of(model, frames(1, 24))


def test_a_model_of_films_gives_each_frame_the_window_whose_middle_is_nearest(
    tmp_path: Path,
) -> None:
    folder = write_vision_model(tmp_path / "v", "videomae")
    model = load_vision_model(str(folder), None, "--model v")
    assert model.window == 4
    shown = frames(7)
    found = vectors_of(model, shown)
    assert found.shape == (7, 12)
    alone = vectors_of(model, shown[2:6])
    np.testing.assert_allclose(found[4], alone[0], rtol=1e-4, atol=1e-5)
    assert vectors_of(model, shown[:2]).shape == (2, 12)  # shorter than a window


def test_windows_lie_half_a_window_apart_and_reach_the_last_frame() -> None:
    assert windows(7, 4).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert windows(2, 4).tolist() == [[0, 1, 1, 1]]
    assert nearest(windows(7, 4), 7).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_vision_model(tmp_path / "d", "dinov2")
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "layer.1" in name)
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lack 1 weights of Dinov2Model"):
        load_vision_model(str(folder), None, "--model d")


def test_a_model_without_an_image_processor_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "d", "dinov2")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"--model d: .* has no preprocessor_config\.json"):
        load_vision_model(str(folder), None, "--model d")


def test_a_size_that_the_model_does_not_take_is_said_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    folder = write_vision_model(tmp_path / "s", "siglip", size={"height": 48, "width": 48})
    with pytest.raises(UserError, match="does not take the 48 x 48 pixels"):
        load_vision_model(str(folder), None, "--model s")


@pytest.mark.parametrize("wrong", [{"image_mean": [0.5]}, {"image_std": [0.0, 1.0, 1.0]}])
def test_a_processor_that_cannot_be_meant_is_refused(tmp_path: Path, wrong: dict) -> None:
    folder = write_vision_model(tmp_path / "c", "clip", **wrong)
    with pytest.raises(UserError, match=r"image_(mean|std)|how large"):
        load_vision_model(str(folder), None, "--model c")


@pytest.mark.parametrize(
    "said",
    [{"rescale_factor": 1 / 127.5}, {"do_rescale": False}, {"do_flip_channel_order": True}],
)
def test_a_processor_that_wants_pictures_in_another_way_is_refused(
    tmp_path: Path, said: dict
) -> None:
    folder = write_vision_model(tmp_path / "c", "clip", **said)
    with pytest.raises(UserError, match=f"asks for {next(iter(said))} .*in no other way"):
        load_vision_model(str(folder), None, "--model c")


@pytest.mark.parametrize("content", ["[]", "3", "[" * 100_000])
def test_a_processor_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_vision_model(tmp_path / "c", "clip")
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=r"--model c: .*preprocessor_config\.json"):
        load_vision_model(str(folder), None, "--model c")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "c", "clip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"--model c: .*cannot be loaded"):
        load_vision_model(str(folder), None, "--model c")


@pytest.mark.parametrize("wrong", [{"patch_size": 0}, {"hidden_size": "12"}, {"model_type": ["a"]}])
def test_a_configuration_that_cannot_be_meant_is_refused(tmp_path: Path, wrong: dict) -> None:
    path = write_vision_model(tmp_path / "c", "classifier") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(UserError, match=r"--model c: .*cannot be loaded"):
        load_vision_model(str(path.parent), None, "--model c")


def write_own(folder: Path, network: Any) -> Path:
    write_vision_model(folder, "clip")
    network.save_pretrained(folder)
    return folder


def test_a_network_that_draws_what_it_looks_at_is_refused(tmp_path: Path) -> None:
    from transformers import ViTMAEConfig, ViTMAEModel

    shape = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1}
    config = ViTMAEConfig(**shape, num_attention_heads=2, image_size=SIDE, patch_size=8)
    folder = write_own(tmp_path / "m", ViTMAEModel(config))
    with pytest.raises(UserError, match="another vector of the same picture each time"):
        load_vision_model(str(folder), None, "--model m")


def test_a_vector_is_as_wide_as_the_network_makes_it(tmp_path: Path) -> None:
    from transformers import MobileNetV1Config, MobileNetV1Model, MobileViTConfig, MobileViTModel

    # One whose configuration has no name for it, and one whose name is that of another layer.
    small = MobileNetV1Model(MobileNetV1Config(image_size=SIDE, depth_multiplier=0.25))
    sizes = {"hidden_sizes": [12, 16, 20], "neck_hidden_sizes": [8, 8, 8, 8, 12, 12, 40]}
    wide = MobileViTModel(
        MobileViTConfig(image_size=SIDE, num_attention_heads=2, patch_size=2, **sizes)
    )
    for name, network, dim in (("small", small, 256), ("wide", wide, 40)):
        model = load_vision_model(str(write_own(tmp_path / name, network)), None, "--model m")
        assert model.output_dim == vectors_of(model, frames(2)).shape[1] == dim
        assert without_weights(model.described, "here").output_dim == dim


def test_what_a_picture_is_to_a_model_is_part_of_what_its_sets_are(tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "c", "clip")
    before = load_vision_model(str(folder), None, "--model c").shown_fingerprint
    write_vision_model(folder, "clip", image_mean=[0.5, 0.5, 0.5])
    assert load_vision_model(str(folder), None, "--model c").shown_fingerprint != before


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "c", "clip")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="from its safetensors"):
        load_vision_model(str(folder), None, "--model c")


def test_an_llm_is_no_vision_model(tmp_path: Path) -> None:
    from helpers.model_factory import tiny_llama

    tiny_llama().save_pretrained(tmp_path / "llm")
    (tmp_path / "llm" / "preprocessor_config.json").write_text(json.dumps({"size": 32}))
    with pytest.raises(UserError, match="sees no pictures"):
        load_vision_model(str(tmp_path / "llm"), None, "--model llm")


def test_parameters_that_no_vector_depends_on_are_found(tmp_path: Path) -> None:
    model = load_vision_model(str(write_vision_model(tmp_path / "d", "dinov2")), None, "m")
    before = {name: p.clone() for name, p in model.named_parameters()}
    mask, *keys = unreached(model)
    assert mask == "network.embeddings.mask_token"
    assert len(keys) == 2  # of two layers: softmax does not see what is added to every key
    assert all(name.endswith(("key.bias", "k_proj.bias")) for name in keys)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(p.requires_grad for p in model.parameters())
