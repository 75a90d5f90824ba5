"""A Slurm for the session, and the small project of the integration tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.local_slurm import LocalSlurm
from helpers.project import project

__all__ = ["project"]


@pytest.fixture(scope="session")
def slurm() -> Iterator[LocalSlurm]:
    """A Slurm that runs as long as the tests; a short path, for sockets allow no long one."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    (folder / "state").mkdir()
    local = LocalSlurm(folder)
    try:
        local.start()
        yield local
    finally:
        local.stop()
        shutil.rmtree(folder)
