"""What may come in over HTTP: from which page, how much, and how many clips at once.

An ASGI application in front of the page's own. Everything it refuses is refused with a sentence
before the page's library sees a byte of it:

- a ``Host`` that is another site's name. A name can be made to lead to this machine after a browser
  has loaded a page from it (DNS rebinding), an address in numbers cannot;
- an ``Origin`` that is another page's, where something is to be done (a cross-site post);
- everything to be done but what the page does: uploading a clip, asking for its translation,
  leaving;
- bodies that are too large, also those that do not say how large they are;
- clips beyond the quota of what is kept, and beyond the number that may wait.

A clip is asked for by its path; one that is no upload is refused here, because an address in its
place would be fetched by the page's library.
"""

from __future__ import annotations

import ipaddress
import json
import re
import stat
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from signfuse_dist.evaluation.choices import Server

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

KEPT_SECONDS = 600
"""Uploads and what was made of them are deleted after."""
RETRY_SECONDS = 30
"""After which one who was told to come back may do so."""

_LOCAL = ("localhost",)
_UPLOAD, _ASK = "/gradio_api/upload", "/gradio_api/queue/join"
_LEAVE = ("/gradio_api/cancel", "/gradio_api/reset")
_MULTIPART = 64 << 10  # bytes of an upload beside the clip: boundaries and names
_QUESTION = 64 << 10  # bytes of a request that is no upload
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:\d{1,5})?")


class Refusal(Exception):
    """Why a request is not let in."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def sweep(folder: Path, seconds: float) -> int:
    """Remove the files under ``folder`` that are older than ``seconds``; return the bytes left."""
    kept, oldest = 0, time.time() - seconds
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if status.st_mtime < oldest:
                path.unlink()
            else:
                kept += status.st_size
        except FileNotFoundError:
            continue  # another request has swept it, or an upload was moved to its place
    return kept


class Door:
    """Lets requests through to ``app``, or refuses them."""

    def __init__(self, app: Application, server: Server, folder: Path) -> None:
        """Guard the page whose uploads are kept in ``folder``."""
        self._app, self._server, self._folder = app, server, folder
        self._names = {*_LOCAL, server.host.lower(), *(n.lower() for n in server.allow_host)}
        self._coming = 0  # bytes that uploads under way may still write

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: the page opens none
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send)
        try:
            await self._let_in(scope, receive, answer)
        except Refusal as refusal:
            if answer.begun:
                raise
            await _refuse(send, refusal, as_json=scope["path"].rstrip("/") == _ASK)

    async def _let_in(
        self, scope: MutableMapping[str, Any], receive: Receive, answer: _Answer
    ) -> None:
        headers, path = _headers(scope), scope["path"].rstrip("/")
        self._check_host(headers.get("host", ""))
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, _Body(receive, _QUESTION).receive, answer.send)
            return
        self._check_origin(headers)
        if scope["method"] != "POST" or path not in (_UPLOAD, _ASK, *_LEAVE):
            raise Refusal(405, "The page has no such request.")
        if path == _UPLOAD:
            await self._upload(scope, receive, answer, headers)
            return
        _announced(headers, _QUESTION, "request")
        body = await _Body(receive, _QUESTION).whole()
        if path == _ASK:
            self._check_clip(body)
            answer.full = Refusal(
                503,
                f"{self._server.max_waiting} clips are waiting already; try again in "
                f"{RETRY_SECONDS} s.",
            )
        await self._app(scope, _given(body, receive), answer.send)

    def _check_host(self, host: str) -> None:
        parts = _HOST.fullmatch(host)
        name = parts.group(1).lower() if parts else ""
        if not name:
            raise Refusal(400, "The request has no Host, or one that is no name.")
        if name not in self._names and not _is_address(name.strip("[]")):
            raise Refusal(
                403,
                f"This page is not served under the name {name[:80]}. Whoever runs it can allow "
                "that: signfuse serve --allow-host NAME.",
            )

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Refuse what another site's page wants done; a program that is no browser names none."""
        origin = headers.get("origin")
        if origin is None:
            same = headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        else:
            try:
                address = urlsplit(origin)
            except ValueError:
                address = urlsplit("")
            allowed = (address.hostname or "") in {n.lower() for n in self._server.allow_host}
            same = address.netloc.lower() == headers["host"].lower() or allowed
        if not same:
            raise Refusal(
                403,
                "Another site's page asked for this, and only this page may. Where a proxy gives "
                "it another name: signfuse serve --allow-host NAME.",
            )

    async def _upload(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        answer: _Answer,
        headers: dict[str, str],
    ) -> None:
        most = (self._server.max_megabytes << 20) + _MULTIPART
        what = f"clip of at most {self._server.max_megabytes} MB (--max-megabytes)"
        coming = _announced(headers, most, what)
        quota = self._server.max_kept_megabytes << 20
        if sweep(self._folder, KEPT_SECONDS) + self._coming + coming > quota:
            raise Refusal(
                503,
                f"The clips that are waiting or were just answered take "
                f"{self._server.max_kept_megabytes} MB already; try again in {RETRY_SECONDS} s.",
            )
        self._coming += coming
        try:
            await self._app(scope, _Body(receive, coming, what).receive, answer.send)
        finally:
            self._coming -= coming

    def _check_clip(self, body: bytes) -> None:
        """Refuse a question about anything but an upload."""
        try:
            paths = list(_paths(json.loads(body)))
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "The request is no JSON of this page.") from error
        folder = self._folder.resolve()
        for path in paths:
            if "\0" in path or not Path(path).resolve().is_relative_to(folder):
                raise Refusal(400, "The clip is not an upload: give it to the page first.")


class _Answer:
    """What the page answers; the status that says its queue is full is put in words."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False
        self.full: Refusal | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] == 503 and self.full:
                raise self.full
            self.begun = True
        await self._send(message)


class _Body:
    """A request's body of at most ``most`` bytes."""

    def __init__(self, receive: Receive, most: int, what: str = "request") -> None:
        self._receive, self._left, self._what = receive, most, what

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _too_large(self._what)
        return message

    async def whole(self) -> bytes:
        parts = []
        while True:
            message = await self.receive()
            parts.append(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return b"".join(parts)


def _given(body: bytes, receive: Receive) -> Receive:
    """Return what hands a body that was read to the application, and then what comes after."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return waiting.pop() if waiting else await receive()

    return given


def _announced(headers: dict[str, str], most: int, what: str) -> int:
    """Return how many bytes a request may send: what it says, else the most it may."""
    length = headers.get("content-length")
    if length is None:
        return most
    if not (length.isascii() and length.isdigit()):
        raise Refusal(400, "The request says no number of bytes.")
    if len(length) > 18 or int(length) > most:
        raise _too_large(what)
    return int(length)


def _too_large(what: str) -> Refusal:
    return Refusal(413, f"Too large: a {what} is taken." if "--" in what else "Too large.")


def _paths(value: object) -> Iterator[str]:
    """Yield every path that a question names, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """Return the headers by name; one that decides here and stands there twice is refused."""
    pairs: Collection[tuple[bytes, bytes]] = scope["headers"]
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}
    for decisive in (b"host", b"origin", b"content-length"):
        if sum(name.lower() == decisive for name, _ in pairs) > 1:
            raise Refusal(400, f"The request has more than one {decisive.decode()}.")
    return headers


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(send: Send, refusal: Refusal, as_json: bool) -> None:
    """Send a refusal in the form that the page shows."""
    kind = b"application/json" if as_json else b"text/plain; charset=utf-8"
    text = json.dumps({"detail": refusal.reason}) if as_json else refusal.reason
    headers = [(b"content-type", kind), (b"x-content-type-options", b"nosniff")]
    if refusal.status == 503:
        headers.append((b"retry-after", str(RETRY_SECONDS).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode("utf-8")})
