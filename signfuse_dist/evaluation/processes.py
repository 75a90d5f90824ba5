"""The processes of one evaluation: who they are, how they share out work and gather results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
_CLOSED = 1 << 40  # above any number of batches
# The others wait for the first one while it scores and draws intervals.
_PATIENCE = timedelta(hours=2)


class _Counters(Protocol):
    """What is asked of torch's store: a sum by name that all processes see."""

    def add(self, key: str, value: int, /) -> int: ...


@dataclass
class Processes:
    """One of ``world`` processes; ``store`` is None when it is alone."""

    rank: int
    world: int
    device: torch.device
    store: _Counters | None = None
    _own: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, amount: int) -> int:
        """Add to a sum over all processes and return what it is now."""
        if self.store is not None:
            return int(self.store.add(f"evaluate/{name}", amount))
        self._own[name] += amount
        return self._own[name]

    def claims(self, count: int) -> Iterator[int]:
        """Yield numbers below ``count``, each to one process: whoever asks next gets the next."""
        while (number := self.add("claimed", 1) - 1) < count:
            yield number

    def close(self) -> None:
        """Let no process claim anything more."""
        self.add("claimed", _CLOSED)

    def gather(self, own: T) -> list[T]:
        """Return what every process gives, on every process."""
        if self.world == 1:
            return [own]
        parts: list[T] = [own] * self.world
        dist.all_gather_object(parts, own)
        return parts

    def agree(self, own: T) -> T:
        """Return what the first process gives, on every process."""
        if self.world == 1:
            return own
        value = [own]
        dist.broadcast_object_list(value, src=0)
        return value[0]


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the launched processes.

    Sentences travel between hosts, so gloo on GPUs as well. On the CPU every process computes on
    one thread: more threads add up in another order, and what is written must not depend on how
    many there are. More processes make it faster.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device, threads = torch.device("cpu"), torch.get_num_threads()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)  # a quantized LLM is loaded onto the current one
    else:
        torch.set_num_threads(1)
    store = None
    try:
        if world > 1:
            store, rank, world = next(iter(rendezvous("env://", rank, world)))
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE
            )
        yield Processes(rank, world, device, store)
        if world > 1:
            dist.barrier()
    finally:
        torch.set_num_threads(threads)
        if store is not None:
            dist.destroy_process_group()
