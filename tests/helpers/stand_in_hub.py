"""A server that stands for the model hub: what is uploaded can be downloaded from it again.

It speaks as much of the hub's interface as ``huggingface_hub`` uses for small files: making a
repository, committing files that come inside the commit, listing and reading them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"  # for this server alone


class StandInHub(ThreadingHTTPServer):
    """The repositories, by name; of each, its files and how often it was committed to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, int] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def head(self, name: str) -> str:
        """Return the name of the newest commit."""
        return hashlib.sha1(f"{name} {self.commits[name]}".encode()).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    server: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, hub = urlsplit(self.path).path, self.server
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            is_new = name not in hub.files
            hub.files.setdefault(name, {})
            hub.commits.setdefault(name, 0)
            self._say(200 if is_new else 409, {"url": f"{hub.address}/{name}"})
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._say(200, {"files": files})
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self._say(200, {})  # such as whether a card's front matter is valid

    def _commit(self, name: str, entries: list[dict[str, dict[str, str]]]) -> None:
        hub = self.server
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":  # type: ignore[comparison-overlap]
                hub.files[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":  # type: ignore[comparison-overlap]
                del hub.files[name][value["path"]]
        hub.commits[name] += 1
        self._say(
            200,
            {
                "commitUrl": f"{hub.address}/{name}/commit/{hub.head(name)}",
                "commitOid": hub.head(name),
                "success": True,
            },
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        found = [name for name in hub.files if f"/{name}/" in f"{path}/"]
        if not found:
            self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        (name,) = found
        files, head = hub.files[name], hub.head(name)
        if path.startswith("/api/models/") and "/tree/" in path:
            self._say(
                200,
                [
                    {
                        "type": "file",
                        "path": file,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for file, content in files.items()
                ],
            )
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": file} for file in files]
            self._say(200, {"id": name, "sha": head, "siblings": siblings, "private": False})
        else:
            file = path.removeprefix(f"/{name}/resolve/").partition("/")[2]
            if file not in files:
                self._say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            etag = hashlib.sha256(files[file]).hexdigest()
            self._send(200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": head})

    def _say(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), headers or {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    """Serve in a thread of this process, until the block ends."""
    with StandInHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
