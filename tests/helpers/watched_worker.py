"""One of two processes that add numbers together, step by step, under the watch.

``watched_worker.py RANK PORT FOLDER SECONDS``: prints its step as it goes.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from signfuse_dist.engine.hang import watched


def main(rank: int, port: int, folder: Path, seconds: float) -> None:
    """Go on for ever: the test ends it."""
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=30),
    )
    with watched(seconds, folder) as marks:
        for step in range(1, 1_000_000):
            marks.at("computing", step)
            dist.all_reduce(torch.ones(1))
            print(step, flush=True)
            time.sleep(0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
