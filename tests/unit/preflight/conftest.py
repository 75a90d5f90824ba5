"""What the tests of the check share: a job in order."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from helpers.checked_job import Job
from helpers.little_job import write_job
from helpers.repository import ROOT
from signfuse_dist import nvidia
from signfuse_dist.preflight import network


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three verified splits and an LLM's files."""
    return write_job(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def job(
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Job:
    shutil.copytree(packed, tmp_path / "job")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(nvidia, "gpu_gigabytes", lambda: None)
    monkeypatch.setattr(network, "why_unreachable", lambda address: f"{address} cannot be reached")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nvidia, "signs_of_gpus", lambda _: [])
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    found = Job(tmp_path / "job", capsys)
    found.options = ["--launch", str(found.launch(main_process_port=port))]
    return found
