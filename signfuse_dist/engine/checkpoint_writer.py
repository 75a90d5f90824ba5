"""Writing checkpoints beside training: a step waits for the copy out of the device, no disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from accelerate import Accelerator

from signfuse_dist.engine import checkpoint_folder
from signfuse_dist.engine.checkpoint_folder import Snapshot
from signfuse_dist.engine.process import do_on_main


class CheckpointWriter:
    """Writes snapshots in a thread of the main process, one at a time.

    A context manager that ends only when nothing is being written. A checkpoint that the disk
    refuses is named, and training goes on with the last whole one; at :meth:`finish` it is an
    error of every process. Other processes do not wait for the disk, except where the main one
    does: when the checkpoint before is still being written, and at the end.
    """

    def __init__(
        self, folder: Path, keep: int, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        self._folder, self._keep, self._accelerator, self._say = folder, keep, accelerator, say
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        if accelerator.is_main_process:
            checkpoint_folder.remove_parts(folder)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.wait()
        self._pool.shutdown()

    def wait(self) -> None:
        """Wait until nothing is being written; say what could not be."""
        try:
            self._join()
        except OSError as e:
            self._say(f"{e}; training goes on")

    def start(self, snapshot: Snapshot) -> None:
        """Hand over a snapshot of the main process, when :meth:`wait` has returned; no waiting."""
        assert self._writing is None
        if self._accelerator.is_main_process:
            write = self._pool.submit(checkpoint_folder.write, self._folder, snapshot, self._keep)
            self._writing = snapshot.step, write

    def finish(self) -> None:
        """Wait for the last checkpoint; raise UserError everywhere when the disk refused it."""
        do_on_main(self._accelerator, self._join)

    def _join(self) -> None:
        """Wait for the write in flight; raise OSError, naming its step, when the disk refused."""
        if self._writing is None:
            return
        (step, write), self._writing = self._writing, None
        if not write.done():
            self._say(f"waiting for the checkpoint of step {step} to be written")
        try:
            write.result()
        except OSError as e:
            whole = checkpoint_folder.list_steps(self._folder)
            last = f"the last whole one is {whole[-1]}" if whole else "there is none before it"
            raise OSError(f"the checkpoint of step {step} could not be written: {e}; {last}") from e
