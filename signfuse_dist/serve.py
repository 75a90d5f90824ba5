"""`signfuse serve`: a web page on which anybody translates a clip, and the server of it."""

from __future__ import annotations

import html
import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import simplejpeg

from signfuse_dist import device
from signfuse_dist.data.look import draw_skeleton
from signfuse_dist.data.mediapipe import choose_extractor
from signfuse_dist.data.shard import EncodedClip
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.choices import Server
from signfuse_dist.evaluation.translate import ClipReader, join
from signfuse_dist.evaluation.translator import Translation, Translator, load_translator
from signfuse_dist.report.markup import visible
from signfuse_dist.report.plots import DARK, LIGHT, data_uri, gate_over_time

# Smaller frames are enlarged by a whole factor, or the skeleton would cover the signer.
_READABLE_SIDE = 384  # pixels
_MAX_FPS = 60  # a browser's recording can claim a thousand


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


_KEPT_SECONDS = 600  # uploads and what was made of them are deleted after
_NUM_CANDIDATES = 3
_WAITING = 16  # visitors in the queue before the next is told to come back


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

    def __init__(self, translator: Translator, reader: ClipReader, folder: Path) -> None:
        """Keep what is made of clips in ``folder``."""
        self._translator, self._reader, self._folder = translator, reader, folder
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
        clip = self._reader.read(video)
        count = min(_NUM_CANDIDATES, self._translator.run.evaluation.num_beams)
        (translation,) = self._translator.translate(join([clip]), count)
        handle, overlay = tempfile.mkstemp(suffix=".mp4", dir=self._folder)
        os.close(handle)
        write_overlay(Path(overlay), clip.encoded)
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
    light, dark = (data_uri(gate_over_time(translation.gate, theme)) for theme in (LIGHT, DARK))
    mean = float(translation.gate.mean())
    about = (
        f"The gate over {len(translation.gate)} steps, {mean:.2f} on average: 0 listens to the "
        "joints alone, 1 to the picture alone."
    )
    return (
        f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{about}"></picture><figcaption>{about}</figcaption></figure>'
    )


def build_page(clips: ClipTranslator, server: Server) -> Any:
    """Return the page as gradio's Blocks."""
    import gradio

    limits = (
        f"Clips of at most {server.limits.max_seconds:g} seconds and {server.max_megabytes} MB "
        f"with one signer in view. They stay on the machine that serves this page and are deleted "
        f"after {_KEPT_SECONDS // 60} minutes."
    )
    with gradio.Blocks(
        title="SignFuse: translate a clip",
        analytics_enabled=False,
        delete_cache=(_KEPT_SECONDS // 10, _KEPT_SECONDS),
    ) as page:
        gradio.Markdown(f"# Translate a clip\n\n{limits}")
        with gradio.Row():
            with gradio.Column():
                clip = gradio.Video(
                    label="Clip",
                    sources=["upload", "webcam"],
                    include_audio=False,
                    webcam_options=gradio.WebcamOptions(mirror=False),
                    elem_id="clip",
                )
                clip.preprocess = _as_it_is
                start = gradio.Button("Translate", variant="primary", elem_id="start")
            with gradio.Column():
                shown = [
                    gradio.Textbox(label="Translation", interactive=False, elem_id="translation"),
                    gradio.HTML(elem_id="remarks"),
                    gradio.Video(label="Skeleton", interactive=False, elem_id="overlay"),
                    gradio.HTML(elem_id="gate"),
                ]
        start.click(clips.answer, clip, shown, api_visibility="private", concurrency_limit=1)
    page.queue(max_size=_WAITING)
    return page


def _as_it_is(payload: Any) -> str | None:
    """Return the path of an upload; recordings have no sound, and others may keep theirs.

    In the library's place, which would have an ffmpeg of the system take the sound out.
    """
    return None if payload is None else str(payload.path)


def serve(run_folder: Path, server: Server, pose_model: Path | None) -> int:
    """Serve the page until ctrl-C or TERM; return 0.

    Uploads are in a temporary folder that is removed at the end. Raises UserError when there is no
    model, no MediaPipe, no gradio, or the port is taken.
    """
    _require_gradio()
    translator = load_translator(run_folder, device.choose())
    extractor = choose_extractor(pose_model)
    reader = ClipReader(translator.run.data, extractor, limits=server.limits)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="signfuse-serve-") as folder:
        # Read by gradio when it is imported; without network it would wait for answers.
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
        }
        page = build_page(ClipTranslator(translator, reader, Path(folder)), server)
        _launch(page, server)
    return 0


def _require_gradio() -> None:
    """Say at once that the page's library is missing, before a model is loaded."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install 'signfuse_dist[serve]'")


def _launch(page: Any, server: Server) -> None:
    import gradio

    # The default theme fetches its fonts from another site.
    theme = gradio.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    try:
        page.launch(
            server_name=server.host,
            server_port=server.port,
            share=False,
            max_file_size=f"{server.max_megabytes}mb",
            theme=theme,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as e:
        raise UserError(f"--port {server.port} of --host {server.host}: {e}; choose another") from e
    print(f"http://{server.host}:{server.port}  (ctrl-C ends it)", flush=True)
    try:
        page.block_thread()
    finally:
        page.close()
