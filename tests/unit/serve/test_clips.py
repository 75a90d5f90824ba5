"""What the page makes of a clip, with stand-ins for the extractor and the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.little_clips import write_video
from helpers.little_splits import data_config
from helpers.signers import InTheMiddle
from signfuse_dist.batch import SignBatch
from signfuse_dist.data.clock import VideoError
from signfuse_dist.evaluation.choices import Limits
from signfuse_dist.evaluation.new_clips import ClipReader, NewClip
from signfuse_dist.evaluation.translator import Translation, join
from signfuse_dist.serve.clips import ClipTranslator, read_upload
from signfuse_dist.serve.reading import ReadingProcess, Upload

DATA = data_config(fps=None, frame_size=32, max_frames=100)


@dataclass
class Model:
    """Stands for the translator: keeps what it is shown."""

    seen: list[SignBatch] = field(default_factory=list)
    usage: Any = field(
        default_factory=lambda: SimpleNamespace(decoding=SimpleNamespace(num_beams=1))
    )

    vectorisers: tuple[()] = ()

    def translate(self, batch: SignBatch, count: int) -> list[Translation]:
        self.seen.append(batch)
        return [Translation("clip", "<b>regen</b>", None, [("<b>regen</b>", 0.0)])]


@dataclass
class ReadsHere(ReadingProcess[NewClip]):
    """Reads as the process does, in this one."""

    reader: ClipReader

    def read(self, upload: Upload) -> NewClip:
        clip = read_upload(self.reader, upload, lambda name, finished: None)
        assert isinstance(clip, NewClip), clip
        return clip


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "uploads" / "v.mp4", 6, 128, 64)


def test_a_model_of_cropped_pictures_sees_the_square_around_the_signer(video: Path) -> None:
    """As `signfuse pack --crop signer` made its training clips; whole pictures have a red edge."""
    model, shown = Model(), {}
    for crop in ("signer", "none"):
        reader = ClipReader(replace(DATA, crop=crop), InTheMiddle(), limits=Limits())
        answer = ClipTranslator(model, ReadsHere(reader), video.parent).answer(str(video))
        assert answer.translation == "<b>regen</b>"
        assert answer.overlay is not None
        shown[crop] = model.seen[-1]
        wanted = join([replace_limits(reader).read(video)])
        assert np.array_equal(shown[crop].frames, wanted.frames)
        assert np.array_equal(shown[crop].pose, wanted.pose)
    assert red_share(shown["signer"]) == 0
    assert red_share(shown["none"]) > 0.1
    assert not np.array_equal(shown["signer"].pose, shown["none"].pose)


def replace_limits(reader: ClipReader) -> ClipReader:
    """Return the reader of `signfuse translate`, which has no limits."""
    return replace(reader, limits=None)


def red_share(batch: SignBatch) -> float:
    frames = np.asarray(batch.frames).astype(int)
    red, green, blue = np.moveaxis(frames, 1 if frames.shape[1] == 3 else -1, 0)
    return float(np.mean((red > green + 100) & (red > blue + 100)))


def test_a_clip_that_cannot_be_read_leaves_no_overlay_and_says_why(tmp_path: Path) -> None:
    class Fails(ReadsHere):
        def read(self, upload: Upload) -> NewClip:
            raise VideoError("<slow>")

    video = write_video(tmp_path / "v.mp4", 2)
    answer = ClipTranslator(Model(), Fails(None), tmp_path).answer(str(video))
    assert "Not translated: &lt;slow&gt;" in answer.remarks
    assert list(tmp_path.iterdir()) == [video]


def test_a_clip_that_was_swept_while_it_waited_is_named_so(tmp_path: Path) -> None:
    translator = ClipTranslator(Model(), ReadsHere(None), tmp_path)
    assert "waited for more than 10 minutes" in translator.answer(str(tmp_path / "v.mp4")).remarks
    assert "not an upload" in translator.answer("/etc/passwd").remarks
