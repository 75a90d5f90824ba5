"""The page of `signfuse serve`, opened in a headless Chromium as a visitor would."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest

from helpers.project import Project, environment, free_port
from helpers.repository import ROOT
from helpers.untrained_run import write_run  # tests/helpers/untrained_run.py

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ANSWER_MS = 240_000  # the machine may be busy

COUNT_RECORDED = """
    window.recordedBytes = 0;
    window.MediaRecorder = class extends MediaRecorder {
        constructor(...given) {
            super(...given);
            this.addEventListener("dataavailable", (e) => { recordedBytes += e.data.size; });
        }
    };
"""


@dataclass
class Served:
    """A page that is being served."""

    process: subprocess.Popen[str]
    address: str
    temporary: Path
    """Where it keeps its folder of uploads."""


@pytest.fixture(scope="module")
def served(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run = write_run(project, tmp_path_factory.mktemp("runs"))
    temporary, port = tmp_path_factory.mktemp("temporary"), free_port()
    command = [
        sys.executable,
        "-m",
        "signfuse_dist.cli",
        "serve",
        str(run),
        "--port",
        str(port),
        "--max-seconds",
        "60",
        "--max-megabytes",
        "1",
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment(), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("http://"):
                break
        else:
            pytest.fail("".join(printed))
        yield Served(process, f"http://127.0.0.1:{port}", temporary)
        if process.poll() is None:
            process.kill()


@pytest.fixture
def page(served: Served) -> Iterator[Any]:
    """A tab with the page; a request to any other host, or an error on the page, fails the test."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *camera]
        )
        tab = browser.new_page(color_scheme="dark")
        tab.add_init_script(COUNT_RECORDED)
        wrong: list[str] = []
        own = (served.address, "data:", "blob:")
        tab.on("request", lambda r: None if r.url.startswith(own) else wrong.append(r.url))
        tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        tab.goto(served.address)
        tab.wait_for_selector("#start")
        yield tab
        browser.close()
    assert wrong == []


def answer(page: Any) -> str:
    """Press the button, wait, and return what the page remarks."""
    page.click("#start")
    page.wait_for_selector("#gate img, #remarks [role=alert]", timeout=ANSWER_MS)
    return str(page.inner_text("#remarks"))


def test_a_dropped_clip_shows_its_translation_skeleton_and_gate(
    project: Project, page: Any, served: Served
) -> None:
    video = project.folder / "corpus" / "clips" / "test_0000.mp4"
    page.set_input_files("#clip input[type=file]", str(video))
    page.wait_for_selector("#clip video", timeout=ANSWER_MS)
    remarks = answer(page)
    # MediaPipe takes the drawn signer for a person without hands, and the page says so.
    assert "no left hand was found" in remarks
    assert page.input_value("#translation textarea")
    assert "The gate over" in page.get_attribute("#gate img", "alt")
    page.wait_for_selector("#overlay video", timeout=ANSWER_MS)
    (made,) = [p for p in served.temporary.rglob("*.mp4") if p.parent.parent == served.temporary]
    with av.open(str(video)) as source, av.open(str(made)) as overlay:
        assert source.duration is not None
        assert overlay.duration is not None
        assert abs(source.duration - overlay.duration) <= 2 * av.time_base / 10  # two frames


def test_a_recorded_clip_is_translated(page: Any) -> None:
    """Chromium's own test picture stands for the camera."""
    page.click("#clip button[aria-label='Capture from camera']")
    page.click(
        "#clip button:has-text('Click to Access Webcam'), #clip .access-webcam button",
        timeout=ANSWER_MS,
    )
    page.click("#clip button:has([title='start recording'])", timeout=ANSWER_MS)
    page.wait_for_function("recordedBytes > 5000", timeout=ANSWER_MS)  # some frames
    page.click("#clip button:has([title='stop recording'])", timeout=ANSWER_MS)
    page.wait_for_selector("#clip video[src]", timeout=ANSWER_MS)
    assert "no person was found" in answer(page)
    assert page.input_value("#translation textarea")


def test_what_is_no_clip_or_too_long_is_refused_with_the_reason(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "<b>broken.mp4"
    broken.write_bytes(b"no video")
    page.set_input_files("#clip input[type=file]", str(broken))
    page.wait_for_selector("#clip video", timeout=ANSWER_MS)
    assert "Not translated: unreadable video" in answer(page)
    long = tmp_path / "long.mp4"
    write_grey(long, seconds=61)
    page.reload()
    page.set_input_files("#clip input[type=file]", str(long))
    page.wait_for_selector("#clip video", timeout=ANSWER_MS)
    assert "longer than 60 s" in answer(page)


def test_files_outside_the_folder_of_uploads_are_not_served(served: Served) -> None:
    for path in ("/etc/passwd", str(ROOT / "setup.cfg"), "../../../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{served.address}/gradio_api/file={urllib.parse.quote(path)}")
        assert refused.value.code in (403, 404)


def test_a_stopped_page_leaves_nothing_behind(served: Served) -> None:
    """The last test of this file: it ends the page."""
    assert list(served.temporary.glob("signfuse-serve-*"))
    os.kill(served.process.pid, signal.SIGTERM)
    assert served.process.wait(timeout=60) in (0, 130)
    assert list(served.temporary.glob("signfuse-serve-*")) == []


def write_grey(path: Path, seconds: int) -> None:
    """Write a small grey video at 10 frames a second."""
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
