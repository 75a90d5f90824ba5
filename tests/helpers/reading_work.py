"""What a reading process can be made to do, in a module that it can import."""

from __future__ import annotations

import os
import time

from signfuse_dist.data.pack_workers import Report
from signfuse_dist.serve.reading import Upload


def read_or_not(upload: Upload | None, report: Report) -> tuple[str, int] | str | None:
    """Do what the clip's name says; return the name and this process's id."""
    if upload is None:
        return None
    report(str(upload.video), 0)
    if upload.video.name == "stuck.mp4":
        upload.overlay.write_bytes(b"begun")
        time.sleep(3600)
    if upload.video.name == "dying.mp4":
        os.abort()
    if upload.video.name == "broken.mp4":
        return "unreadable video: broken.mp4"
    return upload.video.name, os.getpid()


def never_ready(upload: Upload | None, report: Report) -> None:
    """Die before the first clip."""
    os._exit(3)
