"""Feature sets through the commands: computed, checked, trained on, evaluated, translated with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from helpers.project import Project
from helpers.vision_models import write_vision_model
from signfuse_dist.cli import main
from signfuse_dist.evaluation.evaluate import evaluate

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def sets(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put vectors of two models beside the project's splits; return the folder of the models."""
    models = tmp_path_factory.mktemp("models")
    for family in ("clip", "videomae"):
        model = write_vision_model(models / f"tiny-{family}", family)
        assert main(["features", str(project.folder / "shards"), "--model", str(model)]) == 0
    return models


def test_a_model_trains_on_two_feature_sets_and_translates_a_video_as_its_packed_clip(
    project: Project, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model.visual_backbone=features:tiny-clip+tiny-videomae", "model.visual_weights=null"]
    output = tmp_path / "runs"
    check = ["check", project.experiment, f"train.output={output}", *words, "--world-size", "1"]
    main(check)
    said = capsys.readouterr().out
    assert "feature set tiny-clip of" in said
    assert "12 numbers a frame by" in said
    for stage, more in (
        ("contrastive", []),
        ("alignment", ["train.features=cached"]),
        ("finetune", []),
    ):
        project.train(output, 1, f"stage={stage}", *words, *more)
    folder = output / "small" / "finetune"
    with safe_open(folder / "model" / "model.safetensors", framework="np") as file:
        names = list(file.keys())
        assert not [name for name in names if name.startswith("visual.backbone")]
        assert file.get_slice("visual.conv.weight").get_shape() == [16, 24, 3]
    usage = json.loads((folder / "model" / "usage.json").read_text(encoding="utf-8"))
    assert [of["model"] for of in usage["features"]] == [
        str(sets / "tiny-clip"),
        str(sets / "tiny-videomae"),
    ]
    evaluated = evaluate(folder, "test")
    rows = (evaluated / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    hypotheses = {row["id"]: row["hypothesis"] for row in map(json.loads, rows)}
    capsys.readouterr()
    corpus = project.folder / "corpus"
    video, joints = corpus / "clips" / "test_0000.mp4", corpus / "joints" / "test_0000.npz"
    assert main(["translate", str(folder), str(video), "--joints", str(joints)]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["translation"] == hypotheses["test_0000"]
    # Another model under the same name is noticed.
    write_vision_model(sets / "tiny-clip", "clip", seed=1)
    assert main(["translate", str(folder), str(video), "--joints", str(joints)]) == 2
    assert "another model now" in capsys.readouterr().err


def test_a_set_that_a_split_lacks_is_named_before_training(
    project: Project, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model.visual_backbone=features:absent", "stage=finetune", f"train.output={tmp_path}"]
    assert main(["check", project.experiment, *words, "--world-size", "1"]) == 1
    assert "feature set absent of" in capsys.readouterr().out
    # The launcher's own status is 1.
    said = project.train(tmp_path, 1, *words, "train.stages=[finetune]", status=1)
    assert "model.visual_backbone=features:absent: " in said
    assert "`signfuse features` makes it" in said


def test_published_vectors_train_and_a_new_video_is_refused_by_name(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    from signfuse_dist.data.manifest_files import load_index, load_manifest

    published = tmp_path / "published"
    published.mkdir()
    shards = project.folder / "shards"
    for split in ("train", "dev", "test"):
        for entry in load_manifest(shards / split).shards:
            for sample in load_index(shards / split, entry).samples:
                vectors = np.random.default_rng(0).normal(size=(sample.num_frames, 6))
                np.save(published / f"{sample.id}.npy", vectors.astype(np.float32))
    command = ["features", str(shards), "--from", str(published), "--name", "theirs"]
    assert main(command) == 0
    words = ["model.visual_backbone=features:theirs", "train.stages=[finetune]", "stage=finetune"]
    project.train(tmp_path, 2, *words)
    folder = tmp_path / "small" / "finetune"
    evaluate(folder, "test")
    shutil.rmtree(published)
    capsys.readouterr()
    video = project.folder / "corpus" / "clips" / "test_0000.mp4"
    assert main(["translate", str(folder), str(video)]) == 2
    assert "published vectors theirs" in capsys.readouterr().err
