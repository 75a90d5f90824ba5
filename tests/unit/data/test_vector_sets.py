"""Feature sets: a vector a frame beside the clips, computed or published, and batches of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.little_splits import (
    LENGTHS,
    SHARD,
    SIZE,
    clip_batches,
    damage,
    data_config,
    write_split,
)
from signfuse_dist.cli import main
from signfuse_dist.config import AugmentConfig
from signfuse_dist.data.finished import PackError
from signfuse_dist.data.manifest import ShardError
from signfuse_dist.data.manifest_files import load_manifest
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.data.staging import stage
from signfuse_dist.data.vector_sets import (
    PublishedVectors,
    compute_vectors,
    import_vectors,
    read_array,
)
from signfuse_dist.data.verify import verify
from signfuse_dist.errors import UserError
from signfuse_dist.plan import PADDING, spread_frames
from signfuse_dist.vector_source import VectorSource


class Brightness:
    """A model whose vector is a picture's mean, and how many pictures it saw at once."""

    source = VectorSource(dim=2, dtype="float32", model="tests/brightness", precision="fp32")

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.seen += len(frames)
        means = frames.mean(axis=(1, 2, 3))
        return np.stack([means, np.full_like(means, len(frames))], axis=1)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_split(tmp_path / "train")


def opened(shards: Path, *names: str) -> Split:
    return open_split(shards, data_config(), names)


def publish(folder: Path, counts: dict[int, int] | None = None, dim: int = 3) -> Path:
    """Write vectors as others publish them: all of clip i's begin with i."""
    folder.mkdir()
    for i, frames in enumerate(LENGTHS):
        count = (counts or {}).get(i, frames)
        vectors = np.arange(count * dim, dtype=np.float32).reshape(count, dim)
        vectors[:, 0] = i
        np.save(folder / f"clip {i}.npy", vectors)
    return folder


def test_a_computed_set_is_read_in_the_place_of_pictures(shards: Path) -> None:
    summary = compute_vectors(shards, "b", Brightness())
    assert "4 rows = 4 packed" in str(summary)
    batch = clip_batches(opened(shards, "b"), [[2, 0]])[0]
    assert batch.frames.shape == (0, 3, SIZE, SIZE)
    assert batch.frame_vectors is not None
    assert batch.frame_vectors.shape == (10, 2)
    expected = [100 + 5 * i for i in range(6)] + [5 * i for i in range(4)]
    assert batch.frame_vectors[:, 0].tolist() == pytest.approx(expected, abs=2)
    assert batch.frame_vectors[:, 1].tolist() == [6] * 6 + [4] * 4
    assert batch.pose[0, 0, 3, 0] == 3  # the joints are the clips' own
    assert batch.has_visual is None
    assert batch.frame_lengths.tolist() == [6, 4]


def test_no_picture_is_decoded_for_a_batch_of_vectors(shards: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    split = opened(shards, "b")
    damage(split, 0, "jpegs", b"\0" * 50)
    assert clip_batches(split, [[0]])[0].faults == ()
    assert clip_batches(opened(shards), [[0]])[0].faults != ()


def test_two_sets_stand_beside_each_other_in_the_order_of_their_names(
    shards: Path, tmp_path: Path
) -> None:
    compute_vectors(shards, "b", Brightness())
    import_vectors(shards, "p", PublishedVectors(publish(tmp_path / "p"), "p"))
    split = opened(shards, "p", "b")
    assert split.vector_dim == 5
    batch = clip_batches(split, [[3, PADDING]])[0]
    assert batch.frame_vectors is not None
    assert batch.frame_vectors[:3, 0].tolist() == [3, 3, 3]
    assert batch.frame_vectors[:3, 4].tolist() == [3, 3, 3]
    assert not batch.frame_vectors[3:].any()
    assert batch.weight.tolist() == [1, 0]


def test_a_clip_that_is_longer_than_the_model_sees_has_the_vectors_of_its_chosen_frames(
    shards: Path, tmp_path: Path
) -> None:
    import_vectors(shards, "p", PublishedVectors(publish(tmp_path / "p"), "p"))
    batch = clip_batches(opened(shards, "p"), [[2]], max_frames=3)[0]
    assert batch.frame_vectors is not None
    assert batch.frame_vectors[:, 1].tolist() == [3 * i + 1 for i in spread_frames(6, 3)]


def test_augmentation_of_speed_and_streams_takes_vectors_along(shards: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    augment = AugmentConfig(drop_stream=0.9, speed=0.5)
    batch = clip_batches(opened(shards, "b"), [[0, 1, 2, 3]], augment=augment)[0]
    assert batch.frame_vectors is not None
    assert len(batch.frame_vectors) == int(batch.picture_lengths.sum())
    assert batch.has_visual is not None
    assert not batch.has_visual.all()
    assert batch.warp is None
    assert batch.augmented() is batch


def test_what_training_sees_of_a_split_changes_with_its_vectors(
    shards: Path, tmp_path: Path
) -> None:
    plain = opened(shards).content
    import_vectors(shards, "p", PublishedVectors(publish(tmp_path / "p"), "p"))
    import_vectors(shards, "q", PublishedVectors(publish(tmp_path / "q", dim=4), "q"))
    one, other = opened(shards, "p").content, opened(shards, "q").content
    assert len({plain.pictures, one.pictures, other.pictures}) == 3
    assert replace(one, pictures=None) == replace(plain, pictures=None)


def test_a_set_that_is_there_is_kept_and_a_damaged_shard_is_made_again(shards: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    model = Brightness()
    compute_vectors(shards, "b", model)
    assert model.seen == 0
    tar = shards / "features" / "b" / SHARD
    content = bytearray(tar.read_bytes())
    content[1000] ^= 1
    tar.write_bytes(content)
    assert [fault.what for fault in verify(shards / "features" / "b", 0)]
    compute_vectors(shards, "b", model)
    assert model.seen == sum(LENGTHS)
    assert verify(shards / "features" / "b", 0) == []


def test_a_name_keeps_its_vectors(shards: Path, tmp_path: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    with pytest.raises(PackError, match=r"another packing.*tests/brightness.*published"):
        import_vectors(shards, "b", PublishedVectors(publish(tmp_path / "p"), "b"))
    assert opened(shards, "b").vector_dim == 2


def test_a_clip_that_cannot_be_decoded_stands_in_the_way_by_name(shards: Path) -> None:
    damage(opened(shards), 2, "jpegs", b"\0" * 40)
    with pytest.raises(PackError, match="clip 'clip 2': frame 0: no JPEG"):
        compute_vectors(shards, "b", Brightness())
    with pytest.raises(UserError, match="features:b"):
        opened(shards, "b")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.unlink(), r"clip 2: no file clip 2\.npy or clip 2\.npz"),
        (lambda path: np.save(path, np.zeros((5, 3), np.float32)), "5 vectors for 6 frames"),
        (lambda path: np.save(path, np.zeros((6, 4), np.float32)), "of 4 numbers, the others .* 3"),
        (lambda path: np.save(path, np.zeros(6, np.float32)), r"float32 \[6\], not floating"),
        (lambda path: np.save(path, np.zeros((6, 3), int)), r"int64 \[6, 3\], not floating"),
        (lambda path: np.save(path, np.full((6, 3), np.nan)), "6 of 6 vectors are not finite"),
        (lambda path: path.write_bytes(b"\x93NUMPY"), "no array of numbers"),
        (
            lambda path: np.save(path, np.array([[{}]], dtype=object), allow_pickle=True),
            "no array of numbers",
        ),
    ],
)
def test_published_vectors_that_do_not_fit_are_named_and_nothing_is_written(
    shards: Path, tmp_path: Path, write: Any, said: str
) -> None:
    folder = publish(tmp_path / "p")
    write(folder / "clip 2.npy")
    with pytest.raises(PackError, match=f"(?s)1 of 4 clips have no vectors that fit.*{said}"):
        import_vectors(shards, "p", PublishedVectors(folder, "p"))
    assert not (shards / "features").exists()


def test_all_files_that_do_not_fit_are_counted_together(shards: Path, tmp_path: Path) -> None:
    folder = publish(tmp_path / "p", {0: 9, 3: 1})
    with pytest.raises(PackError, match=r"(?s)2 of 4 clips.*clip 0: 9 .*clip 3: 1 vectors for 3"):
        import_vectors(shards, "p", PublishedVectors(folder, "p"))


def test_vectors_of_another_rate_stand_for_the_frames_of_their_seconds() -> None:
    published = PublishedVectors(Path(), "p", rate=5.0)
    assert published.places(3, 6, 10.0) == [0, 0, 1, 1, 2, 2]
    # Windows of 16 frames, 8 apart, as of video models: the clip's ends have the outermost.
    wide = PublishedVectors(Path(), "p", rate=25 / 8, window=16 / 25)
    assert wide.places(4, 40, 25.0) == [0] * 12 + [1] * 8 + [2] * 8 + [3] * 12
    assert wide.places(1, 10, 25.0) == [0] * 10
    with pytest.raises(UserError, match=r"9 vectors, and 40 frames at 25 a second are 4"):
        wide.places(9, 40, 25.0)


def test_an_archive_of_one_array_is_read_and_one_of_two_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    np.savez(one, features=np.ones((2, 3), np.float16))
    np.savez(two, a=np.ones((2, 3)), b=np.ones((2, 3)))
    assert read_array(one).shape == (2, 3)
    with pytest.raises(UserError, match="2 arrays"):
        read_array(two)


@pytest.mark.parametrize(
    "damaged",
    [
        lambda array, packed: array.replace(b"'descr'", b"'descr\"", 1),  # a string without an end
        lambda array, packed: packed[:60] + bytes([packed[60] ^ 0xFF]) + packed[61:],
        lambda array, packed: with_zip_version(packed, 0xC0),
        lambda array, packed: zipped(b"no array"),
    ],
    ids=["header", "deflated bytes", "version of zip", "no array inside"],
)
def test_a_damaged_array_is_named_and_no_other_error(
    tmp_path: Path, damaged: Callable[[bytes, bytes], bytes]
) -> None:
    vectors = np.random.default_rng(0).random((4, 3))
    np.save(tmp_path / "a.npy", vectors)
    np.savez_compressed(tmp_path / "a.npz", vectors)
    broken = tmp_path / "b.npz"
    broken.write_bytes(damaged(*((tmp_path / f"a.{end}").read_bytes() for end in ("npy", "npz"))))
    with pytest.raises(UserError, match=r"^b\.npz: no array of numbers"):
        read_array(broken)


def with_zip_version(packed: bytes, version: int) -> bytes:
    """Let an archive's directory say that its first entry needs this version of zip."""
    place = packed.index(b"PK\x01\x02") + 6
    return packed[:place] + bytes([version]) + packed[place + 1 :]


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", content)
    return file.getvalue()


@pytest.mark.parametrize("clip_id", ["x" * 300, "a\0b"])
def test_an_id_that_no_file_can_have_is_a_clip_without_one(tmp_path: Path, clip_id: str) -> None:
    with pytest.raises(UserError, match="no file can be called"):
        PublishedVectors(publish(tmp_path / "p"), "p").path(clip_id)


def test_an_id_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    publish(tmp_path / "p")
    np.save(tmp_path / "secret.npy", np.ones((1, 1)))
    with pytest.raises(UserError, match="leads out of the folder"):
        PublishedVectors(tmp_path / "p", "p").path("../secret")


def test_numbers_that_a_type_cannot_hold_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = publish(tmp_path / "p")
    np.save(folder / "clip 1.npy", np.full((1, 3), 1e6, np.float32))
    with pytest.raises(PackError, match="clip 1: numbers beyond what float16 holds"):
        import_vectors(shards, "p", PublishedVectors(folder, "p", dtype="float16"))


def test_damaged_vectors_are_a_fault_of_their_clip(shards: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    split = opened(shards, "b")
    damage(split.vectors[0].split, 0, "vectors.npy", b"\xff\xff\xff\xff", skip=128)
    batch = clip_batches(split, [[0, 1]])[0]
    assert batch.weight.tolist() == [0, 1]
    assert "clip 0" in batch.faults[0]
    assert "not finite" in batch.faults[0]


def test_a_source_that_was_edited_is_refused(shards: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    path = shards / "features" / "b" / "source.json"
    path.write_text(path.read_text().replace('"dim": 2', '"dim": 3'))
    with pytest.raises(UserError, match="not the source of the vectors"):
        opened(shards, "b")
    assert any("not the source" in fault.what for fault in verify(path.parent, 0))


def test_a_set_of_other_clips_is_refused(shards: Path, tmp_path: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    other = write_split(tmp_path / "other", LENGTHS[:3])
    (shards / "features").rename(other / "features")
    with pytest.raises(UserError, match=r"features:b: .* belongs to other clips"):
        opened(other, "b")
    assert verify(other / "features" / "b", 0) != []


def test_staged_shards_bring_their_vectors(shards: Path, tmp_path: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    split = stage(opened(shards, "b"), str(tmp_path / "node"))
    (shards / "features" / "b" / SHARD).unlink()
    batch = clip_batches(split, [[0]])[0]
    assert batch.faults == ()
    assert batch.frame_vectors is not None


def test_tasks_share_the_shards_of_a_set(shards: Path) -> None:
    first = compute_vectors(shards, "b", Brightness(), task_id=1, num_tasks=2)
    assert not first.complete
    assert compute_vectors(shards, "b", Brightness(), task_id=0, num_tasks=2).complete
    assert load_manifest(shards / "features" / "b").num_samples == 4


def test_the_command_imports_and_says_what_it_wrote(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = publish(tmp_path / "p")
    command = ["features", str(shards), "--from", str(folder)]
    assert main(command) == 2
    assert "--from needs --name" in capsys.readouterr().err
    assert main([*command, "--name", "p", "--precision", "bf16"]) == 2
    assert "--precision has no use with --from" in capsys.readouterr().err
    assert main([*command, "--name", "p"]) == 0
    assert "3 numbers a frame of the published p" in capsys.readouterr().out
    assert main(["verify", str(shards / "features" / "p"), "--workers", "0"]) == 0


def test_the_command_computes_with_a_model_of_a_folder(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from helpers.vision_models import write_vision_model

    model = write_vision_model(tmp_path / "tiny-clip", "clip")
    assert main(["features", str(shards), "--model", str(model)]) == 0
    assert "32 x 32 pixels" in capsys.readouterr().out
    split = opened(shards, "tiny-clip")
    assert split.vector_dim == 12
    assert split.vectors[0].source.fingerprint is not None
    assert clip_batches(split, [[0, 1]])[0].faults == ()


def test_a_model_of_a_folder_is_the_same_from_every_place(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers.vision_models import write_vision_model

    model = write_vision_model(tmp_path / "tiny-clip", "clip")
    monkeypatch.chdir(tmp_path)
    assert main(["features", str(shards), "--model", "tiny-clip"]) == 0
    assert opened(shards, "tiny-clip").vectors[0].source.model == str(model)
    monkeypatch.chdir(model)
    assert main(["features", str(shards), "--model", "."]) == 0
    assert main(["features", str(shards), "--model", str(model)]) == 0


@pytest.mark.parametrize("command", [["stats"], ["show"]])
def test_what_shows_clips_says_where_those_of_a_feature_set_are(
    shards: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    compute_vectors(shards, "b", Brightness())
    rest = ["clip 0"] if command == ["show"] else []
    assert main([*command, str(shards / "features" / "b"), *rest]) == 2
    said = capsys.readouterr().err
    assert "holds the vectors of a feature set alone" in said
    assert "signfuse pack" not in said


def test_a_set_is_of_clips_and_not_of_poses(shards: Path) -> None:
    compute_vectors(shards, "b", Brightness())
    with pytest.raises(PackError, match="holds features alone"):
        compute_vectors(shards / "features" / "b", "c", Brightness())
    with pytest.raises(ShardError):
        compute_vectors(shards / "nowhere", "c", Brightness())
