"""The page of `signfuse serve`, and the server of it."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from signfuse_dist import device
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.choices import Server
from signfuse_dist.evaluation.new_clips import reader_for
from signfuse_dist.evaluation.translator import load_translator
from signfuse_dist.serve.clips import ClipTranslator, read_upload
from signfuse_dist.serve.door import KEPT_SECONDS, Door, sweep
from signfuse_dist.serve.reading import ReadingProcess

_SWEEP_EVERY = 60  # seconds


def build_page(clips: ClipTranslator, server: Server) -> Any:
    """Return the page as gradio's Blocks."""
    import gradio

    limits = (
        f"Clips of at most {server.limits.max_seconds:g} seconds and {server.max_megabytes} MB "
        f"with one signer in view. They stay on the machine that serves this page and are deleted "
        f"after {KEPT_SECONDS // 60} minutes."
    )
    with gradio.Blocks(
        title="SignFuse: translate a clip",
        analytics_enabled=False,
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
    page.queue(max_size=server.max_waiting)
    return page


def _as_it_is(payload: Any) -> str | None:
    """Return the path of an upload; recordings have no sound, and others may keep theirs.

    In the library's place, which would have an ffmpeg of the system take the sound out.
    """
    return None if payload is None else str(payload.path)


def serve(model: Path, server: Server, pose_model: Path | None) -> int:
    """Serve the page until ctrl-C or TERM, either of which is raised as KeyboardInterrupt.

    ``model`` is a run folder, the folder of a model, or a name of the model hub. Uploads are in a
    temporary folder that is removed at the end. Raises UserError when there is no
    model, no MediaPipe, no gradio, or the port is taken.
    """
    _require_gradio()
    translator = load_translator(model, device.choose(), server.decoding)
    reader = reader_for(
        translator.usage,
        pose_model,
        limits=server.limits,
        say=lambda note: print(f"note: {note}", file=sys.stderr),
    )
    reading = ReadingProcess(partial(read_upload, reader), server.limits.max_work_seconds)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="signfuse-serve-") as folder, closing(reading):
        reading.start()
        with opened(ClipTranslator(translator, reading, Path(folder)), server, Path(folder)):
            print(f"http://{server.host}:{server.port}  (ctrl-C ends it)", flush=True)
            threading.Event().wait()  # gradio's own waiting takes ctrl-C for itself
    return 0


def _require_gradio() -> None:
    """Say at once that the page's library is missing, before a model is loaded."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install 'signfuse_dist[serve]'")


@contextmanager
def opened(clips: ClipTranslator, server: Server, folder: Path) -> Iterator[Any]:
    """Serve the page with its uploads in ``folder``; closed at the end.

    Raises UserError when the port is taken.
    """
    # Read by gradio when it is imported; without network it would wait for answers.
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    }
    import gradio
    from starlette.middleware import Middleware

    page = build_page(clips, server)
    # The default theme fetches its fonts from another site.
    theme = gradio.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    ended = threading.Event()
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
            app_kwargs={"middleware": [Middleware(Door, server=server, folder=folder)]},
        )
    except OSError as e:
        raise UserError(f"--port {server.port} of --host {server.host}: {e}; choose another") from e
    threading.Thread(target=_sweep_until, args=(ended, folder), daemon=True).start()
    try:
        yield page
    finally:
        ended.set()
        page.close(verbose=False)


def _sweep_until(ended: threading.Event, folder: Path) -> None:
    """Delete what is old, also where nobody comes any more."""
    while not ended.wait(_SWEEP_EVERY):
        sweep(folder, KEPT_SECONDS)
