"""An LLM's files on a network disk are read from end to end before they are mapped.

safetensors maps a file, and a page that is touched is fetched when it is touched: on NFS or Lustre
that is a request after the other, by every process of a node. Read in order before, in large pieces
and a part by each process, the same bytes lie in the node's memory when they are mapped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from signfuse_dist.progress import print_line

_PIECE = 1 << 24
# Types of file systems that lie on other machines, as the kernel names them; every FUSE but those
# of this machine's own disks is one too.
_NETWORK = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4"),
    *("panfs", "smb3", "smbfs", "wekafs"),
)
_LOCAL_FUSE = (
    "fuse.overlayfs",
    "fuse.fuse-overlayfs",
    "fuse.ntfs-3g",
    "fuse.squashfuse",
    "fuseblk",
)


def file_system(path: Path) -> str:
    """Return the type of the file system that ``path`` lies on, "" where it is not known."""
    real = path.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if real.is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else ""


def is_network(kind: str) -> bool:
    """Return whether a type of file system lies on other machines."""
    return kind in _NETWORK or (kind.startswith("fuse") and kind not in _LOCAL_FUSE)


def read_ahead(folder: Path) -> int:
    """Read this process's part of the weights in a folder on a network disk; return the bytes read.

    None where they would not stay in memory. Missing weights are for the loader to name.
    """
    kind = file_system(folder)
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not paths or not is_network(kind):
        return 0
    size = sum(path.stat().st_size for path in paths)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = psutil.virtual_memory().available
    what = f"LLM in {folder}: {size / 1e9:.1f} GB on {kind}"
    if size > free:
        if rank == 0:
            print_line(f"{what}, not read ahead: {free / 1e9:.1f} GB of memory are free")
        return 0
    if rank == 0:
        print_line(f"{what}, read ahead, a part by each of {count} processes")
    return sum(_read(path, start, stop) for path, start, stop in part(paths, rank, count))


def part(paths: Sequence[Path], rank: int, count: int) -> Iterator[tuple[Path, int, int]]:
    """Yield what process ``rank`` of ``count`` reads: one of ``count`` parts of every file."""
    for path in paths:
        size = path.stat().st_size
        yield path, size * rank // count, size * (rank + 1) // count


def _read(path: Path, start: int, stop: int) -> int:
    done = start
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while done < stop:
            read = len(file.read(min(_PIECE, stop - done)))
            if not read:
                break  # shorter than it was: who loads it says so
            done += read
    return done - start
