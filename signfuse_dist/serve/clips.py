"""A visitor's clip: read, translated, and what the page shows of it."""

from __future__ import annotations

import html
import os
import tempfile
import threading
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import simplejpeg

from signfuse_dist.data.look import draw_skeleton
from signfuse_dist.data.pack_workers import Report
from signfuse_dist.data.shard import EncodedClip
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.new_clips import ClipReader, NewClip, Source, read_source
from signfuse_dist.evaluation.translator import Translation, Translator, join
from signfuse_dist.report.figures import data_uri
from signfuse_dist.report.markup import visible
from signfuse_dist.report.plots import gate_over_time, in_themes
from signfuse_dist.serve.door import KEPT_SECONDS
from signfuse_dist.serve.reading import ReadingProcess, Upload

# Smaller frames are enlarged by a whole factor, or the skeleton would cover the signer.
_READABLE_SIDE = 384  # pixels
_MAX_FPS = 60  # a browser's recording can claim a thousand
_NUM_CANDIDATES = 3


def read_upload(reader: ClipReader, upload: Upload | None, report: Report) -> NewClip | str | None:
    """Return a clip, its overlay written, or what is wrong with it; None is answered at once.

    The work of a :class:`~signfuse_dist.serve.reading.ReadingProcess`.
    """
    if upload is None:
        return None
    clip = read_source(reader, Source(upload.video, None, None), report)
    if isinstance(clip, NewClip):
        write_overlay(upload.overlay, clip.encoded)
    return clip


def write_overlay(path: Path, clip: EncodedClip) -> None:
    """Write every frame of ``clip`` with its skeleton as H.264 in an MP4, at the clip's rate."""
    rate = Fraction(min(float(clip.record["fps"]), _MAX_FPS)).limit_denominator(1000)
    side = simplejpeg.decode_jpeg_header(clip.jpegs[0])[0]
    factor = max(1, _READABLE_SIDE // side)
    even = side * factor // 2 * 2  # the codec halves the colours' resolution
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = even, even, "yuv420p"
        for jpeg, pose, mask in zip(clip.jpegs, clip.pose, clip.mask, strict=True):
            frame = simplejpeg.decode_jpeg(jpeg).repeat(factor, axis=0).repeat(factor, axis=1)
            drawn = draw_skeleton(frame, np.clip(pose, -1.0, 2.0), mask)[:even, :even]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


class Answer(NamedTuple):
    """What the page shows of a clip."""

    translation: str
    remarks: str
    """HTML."""
    overlay: str | None
    """Path of a video, inside the folder of uploads."""
    gate: str
    """HTML."""


class ClipTranslator:
    """Translates one clip after another for the page."""

    def __init__(
        self, translator: Translator, reading: ReadingProcess[NewClip], folder: Path
    ) -> None:
        """Keep what is made of clips in ``folder``."""
        self._translator, self._reading, self._folder = translator, reading, folder
        self._one_at_a_time = threading.Lock()  # the extractor remembers the frame before

    def answer(self, video: str | None) -> Answer:
        """Translate an uploaded clip; what is wrong with it is said in the remarks."""
        if video is None:
            return _refused("Give a clip first: drop a file or record one.")
        with self._one_at_a_time:
            try:
                return self._translate(Path(video))
            except UserError as e:
                return _refused(f"Not translated: {e}")

    def _translate(self, video: Path) -> Answer:
        if not video.resolve().is_relative_to(self._folder.resolve()):
            raise UserError("the clip is not an upload")
        if not video.exists():
            raise UserError(
                f"it waited for more than {KEPT_SECONDS // 60} minutes and was deleted; give it "
                "again"
            )
        handle, overlay = tempfile.mkstemp(suffix=".mp4", dir=self._folder)
        os.close(handle)
        try:
            clip = self._reading.read(Upload(video, Path(overlay)))
            count = min(_NUM_CANDIDATES, self._translator.usage.decoding.num_beams)
            (translation,) = self._translator.translate(
                join([clip], self._translator.vectorisers), count
            )
        except BaseException:
            Path(overlay).unlink(missing_ok=True)
            raise
        return Answer(
            visible(translation.text),
            _remarks(clip.notes, translation),
            overlay,
            _gate(translation),
        )


def _refused(reason: str) -> Answer:
    return Answer("", f'<p role="alert">{html.escape(visible(reason))}</p>', None, "")


def _remarks(notes: Sequence[str], translation: Translation) -> str:
    """Return the notes and the other candidates as HTML."""
    shown = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    notes_list = f'<ul role="status" aria-label="Notes">{shown}</ul>' if notes else ""
    others = "".join(
        f"<li>{html.escape(visible(text))} <small>({score:.2f})</small></li>"
        for text, score in translation.candidates[1:]
        if score is not None
    )
    if not others:
        return notes_list
    return f"{notes_list}<p>Also considered (log-probability a token):</p><ol>{others}</ol>"


def _gate(translation: Translation) -> str:
    """Return the gate over time as HTML with a picture for light pages and one for dark ones."""
    if translation.gate is None:
        return "<p>This model has no gate: it has one stream, or another fusion.</p>"
    light, dark = map(data_uri, in_themes(partial(gate_over_time, translation.gate)))
    mean = float(translation.gate.mean())
    about = (
        f"The gate over {len(translation.gate)} steps, {mean:.2f} on average: 0 listens to the "
        "joints alone, 1 to the picture alone."
    )
    return (
        f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{about}"></picture><figcaption>{about}</figcaption></figure>'
    )
