"""The page over HTTP, as its server answers it: the door is in front of what gradio serves."""

from __future__ import annotations

import http.client
import importlib.util
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from helpers.project import free_port
from signfuse_dist.evaluation.choices import Limits, Server
from signfuse_dist.serve.clips import Answer, ClipTranslator
from signfuse_dist.serve.page import opened

pytestmark = [
    pytest.mark.long,  # importing and starting the page's library takes seconds
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs the extra serve"),
]


@dataclass
class Slow(ClipTranslator):
    """Answers when it may."""

    may: threading.Event = field(default_factory=threading.Event)

    def answer(self, video: str | None) -> Answer:
        self.may.wait(60)
        return Answer("regen", "", None, "")


@dataclass
class Visited:
    """A page that is being served."""

    port: int
    clips: Slow
    folder: Path

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answered = response.status, response.headers, response.read().decode()
        connection.close()
        return answered

    def upload(self, content: bytes) -> tuple[int, str]:
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="v.mp4"\r\n\r\n'
        body += content + b"\r\n--x--\r\n"
        kind = "multipart/form-data; boundary=x"
        status, _, text = self.ask("POST", "/gradio_api/upload", body, **{"content-type": kind})
        return status, text

    def translate(self, path: str, visitor: int) -> tuple[int, http.client.HTTPMessage, str]:
        config = json.loads(self.ask("GET", "/config")[2])
        (click,) = (d["id"] for d in config["dependencies"] if d["targets"])
        clip = {"path": path, "meta": {"_type": "gradio.FileData"}}
        question = {"data": [clip], "fn_index": click, "session_hash": f"visitor{visitor}"}
        kind = {"content-type": "application/json"}
        return self.ask("POST", "/gradio_api/queue/join", json.dumps(question).encode(), **kind)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visited]:
    folder, port, clips = tmp_path_factory.mktemp("uploads"), free_port(), Slow()
    server = Server(Limits(), port=port, max_megabytes=1, max_waiting=2, max_kept_megabytes=2)
    with opened(clips, server, folder):
        yield Visited(port, clips, folder)
        clips.may.set()


def test_the_door_is_in_front_of_the_page(page: Visited) -> None:
    assert page.ask("GET", "/")[0] == 200
    assert page.ask("GET", "/", host="evil.example.com")[0] == 403
    origin = {"origin": "https://evil.example.com"}
    assert page.ask("POST", "/gradio_api/queue/join", b"{}", **origin)[0] == 403
    assert page.ask("POST", "/gradio_api/run/answer", b"{}")[0] == 405


def test_uploads_are_bounded_and_an_address_is_none(page: Visited) -> None:
    status, _, text = page.ask(
        "POST", "/gradio_api/upload", b"x", **{"content-length": str(2 << 20)}
    )
    assert (status, text) == (413, "Too large: a clip of at most 1 MB (--max-megabytes) is taken.")
    assert page.translate("http://127.0.0.1:1/v.mp4", 0)[0] == 400


def test_a_full_queue_tells_the_next_to_come_back(page: Visited) -> None:
    status, text = page.upload(b"a clip")
    assert status == 200
    (path,) = json.loads(text)
    assert Path(path).read_bytes() == b"a clip"
    answers = [page.translate(path, visitor) for visitor in range(5)]
    assert answers[0][0] == 200
    status, headers, text = answers[-1]
    assert (status, headers["retry-after"]) == (503, "30")
    assert "2 clips are waiting already; try again in 30 s" in json.loads(text)["detail"]


def test_what_is_kept_is_bounded(page: Visited) -> None:
    """The last test of this file: it fills the folder."""
    assert page.upload(bytes(900 << 10))[0] == 200
    assert page.upload(b"\1" * (900 << 10))[0] == 200
    status, text = page.upload(b"\2" * (900 << 10))
    assert status == 503
    assert "take 2 MB already" in text
