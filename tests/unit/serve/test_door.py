"""What comes in over HTTP is bounded, and comes from the page itself."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from signfuse_dist.evaluation.choices import Limits, Server
from signfuse_dist.serve.door import KEPT_SECONDS, Door, sweep

UPLOAD, ASK = "/gradio_api/upload", "/gradio_api/queue/join"
SERVER = Server(Limits(), max_megabytes=1, max_kept_megabytes=3, allow_host=("sign.example.org",))
OWN = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}


@dataclass
class Page:
    """Stands for the page: takes what is let in, and answers with a status."""

    status: int = 200
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"let in"})


def ask(
    door: Door,
    method: str,
    path: str,
    headers: dict[str, str],
    parts: list[bytes] | None = None,
) -> tuple[int, dict[bytes, bytes], str]:
    """Send one request; return the status, the headers and the text of the answer."""
    parts = parts or [b""]
    waiting = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(door(scope, receive, send))
    start, *rest = sent
    text = b"".join(message["body"] for message in rest).decode()
    return start["status"], dict(start["headers"]), text


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def door(page: Page, tmp_path: Path) -> Door:
    return Door(page, SERVER, tmp_path)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "10.1.2.3", "sign.example.org"]
)
def test_the_page_has_addresses_in_numbers_and_the_names_it_is_given(door: Door, host: str) -> None:
    assert ask(door, "GET", "/", {"host": host})[0] == 200


@pytest.mark.parametrize("host", ["evil.example.com:7860", "127.0.0.1.evil.example.com", "a b"])
def test_another_sites_name_that_leads_here_is_refused_and_the_option_named(
    door: Door, page: Page, host: str
) -> None:
    """DNS rebinding: a browser believes that the page belongs to that site."""
    status, _, text = ask(door, "GET", "/", {"host": host})
    assert status == 403
    assert "--allow-host" in text
    assert page.bodies == []


def test_a_request_without_a_host_or_with_two_is_refused(door: Door, tmp_path: Path) -> None:
    assert ask(door, "GET", "/", {})[0] == 400
    assert ask(door, "GET", "/", {"host": "localhost", "Host": "evil.example.com"})[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example.com"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", [UPLOAD, ASK])
def test_what_another_sites_page_posts_is_refused(
    door: Door, page: Page, path: str, headers: dict[str, str]
) -> None:
    status, _, text = ask(door, "POST", path, {"host": OWN["host"], **headers}, [b"{}"])
    assert status == 403
    assert "--allow-host" in text
    assert page.bodies == []


@pytest.mark.parametrize(
    "headers",
    [OWN, {"host": "127.0.0.1:7860"}, {**OWN, "origin": "https://sign.example.org"}],
    ids=["its own page", "no browser", "behind a proxy"],
)
def test_what_its_own_page_posts_is_let_in(door: Door, page: Page, headers: dict[str, str]) -> None:
    assert ask(door, "POST", UPLOAD, headers, [b"one", b"two"])[0] == 200
    assert page.bodies == [b"onetwo"]


@pytest.mark.parametrize("path", ["/gradio_api/run/predict", "/gradio_api/call/answer", "/login"])
def test_nothing_is_done_but_what_the_page_does(door: Door, page: Page, path: str) -> None:
    assert ask(door, "POST", path, OWN, [b"{}"])[0] == 405
    assert ask(door, "DELETE", UPLOAD, OWN)[0] == 405
    assert page.bodies == []


def test_an_upload_that_says_it_is_too_large_is_refused_before_it_is_read(
    door: Door, page: Page
) -> None:
    status, _, text = ask(door, "POST", UPLOAD, {**OWN, "content-length": str(2 << 20)}, [])
    assert status == 413
    assert "at most 1 MB (--max-megabytes)" in text
    assert page.bodies == []


def test_an_upload_that_does_not_say_how_large_it_is_is_counted(door: Door, page: Page) -> None:
    for headers in (OWN, {**OWN, "content-length": "10"}):
        assert ask(door, "POST", UPLOAD, headers, [b"x" * (400 << 10)] * 4)[0] == 413
    assert page.bodies == []
    assert ask(door, "POST", UPLOAD, OWN, [b"x" * (400 << 10)] * 2)[0] == 200


def test_uploads_beyond_the_quota_of_what_is_kept_are_told_to_come_back(
    door: Door, page: Page, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    kept = tmp_path / "a" / "clip.mp4"
    kept.write_bytes(bytes(5 << 19))
    headers = {**OWN, "content-length": str(1 << 20)}
    status, told, text = ask(door, "POST", UPLOAD, headers, [b"x"])
    assert (status, told[b"retry-after"]) == (503, b"30")
    assert "take 3 MB already; try again in 30 s" in text
    assert page.bodies == []
    old = time.time() - KEPT_SECONDS - 1
    os.utime(kept, (old, old))
    assert ask(door, "POST", UPLOAD, headers, [b"x"])[0] == 200
    assert not kept.exists()


def test_uploads_under_way_count_as_kept(tmp_path: Path) -> None:
    """Ten that begin at once would otherwise all find room."""
    headers = {**OWN, "content-length": str(1 << 20)}
    refused = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        """Does not finish before the third upload was answered."""
        await waiting.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def upload() -> None:
        async def send(message: Any) -> None:
            if message.get("status") == 503:
                refused.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": UPLOAD, "headers": pairs}
        await door(scope, receive, send)

    async def all_at_once() -> None:
        begun = [asyncio.ensure_future(upload()) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.wait_for(upload(), 10)
        waiting.set()
        await asyncio.gather(*begun)
        await upload()

    door, waiting = Door(page, SERVER, tmp_path), asyncio.Event()
    asyncio.run(all_at_once())
    assert len(refused) == 1  # the fourth of 1 MB, and none after the others have ended


def question(path: str) -> list[bytes]:
    """Return what the page sends when it wants a clip translated."""
    clip = {"video": {"path": path, "meta": {"_type": "gradio.FileData"}}}
    return [json.dumps({"data": [clip], "fn_index": 0, "session_hash": "x"}).encode()]


def test_a_question_about_an_upload_is_let_in_as_it_was_sent(
    door: Door, page: Page, tmp_path: Path
) -> None:
    asked = question(str(tmp_path / "a" / "clip.mp4"))
    assert ask(door, "POST", ASK, OWN, asked)[0] == 200
    assert page.bodies == asked


@pytest.mark.parametrize(
    "path",
    ["http://other.example.org/clip.mp4", "/etc/passwd", "a/clip.mp4", "{}/../b.mp4", "a\0b"],
)
def test_a_question_about_anything_but_an_upload_is_refused(
    door: Door, page: Page, tmp_path: Path, path: str
) -> None:
    """An address would be fetched by the page's library."""
    status, _, text = ask(door, "POST", ASK, OWN, question(path.format(tmp_path)))
    assert status == 400
    assert "is not an upload" in json.loads(text)["detail"]
    assert page.bodies == []


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 5000], ids=["torn", "no text", "deep"])
def test_a_question_that_is_no_json_is_refused(door: Door, page: Page, body: bytes) -> None:
    assert ask(door, "POST", ASK, OWN, [body])[0] == 400
    assert page.bodies == []


def test_a_question_is_bounded(door: Door, page: Page) -> None:
    assert ask(door, "POST", ASK, OWN, [b" " * (40 << 10)] * 2)[0] == 413
    assert ask(door, "POST", ASK, {**OWN, "content-length": "9" * 20}, [b" "])[0] == 413
    assert ask(door, "POST", ASK, {**OWN, "content-length": "-1"}, [b" "])[0] == 400
    assert page.bodies == []


def test_where_the_queue_is_full_the_next_is_told_to_come_back(door: Door, page: Page) -> None:
    page.status = 503
    status, told, text = ask(door, "POST", ASK, OWN, [b"{}"])
    assert (status, told[b"retry-after"]) == (503, b"30")
    assert json.loads(text)["detail"].startswith("16 clips are waiting already; try again")


def test_links_are_neither_followed_nor_counted_as_what_they_lead_to(tmp_path: Path) -> None:
    other, folder = tmp_path / "other", tmp_path / "kept"
    other.write_bytes(bytes(1000))
    folder.mkdir()
    (folder / "link").symlink_to(other)
    assert sweep(folder, -1.0) == 0
    assert other.exists()
    assert not (folder / "link").is_symlink()
