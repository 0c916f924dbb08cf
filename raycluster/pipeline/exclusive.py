"""Work in a run folder that no other process may disturb: check that it can be written, and hold its lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from raycluster.compute import interrupts, work
from raycluster.errors import ConfigError
from raycluster.storage import lock
from raycluster.tables.markers import RunFolder


def check_writable(folder: RunFolder) -> None:
    """Raise :class:`ConfigError` if no file can be written in the run folder."""
    probe = folder.root / "_writable"
    try:
        try:
            probe.write_bytes(b"")
        finally:
            probe.delete()
    except OSError as error:
        raise ConfigError(f"output: {folder.root.uri} cannot be written ({error}); choose another `output`") from None


@contextmanager
def alone(folder: RunFolder, names: Iterable[str]) -> Iterator[None]:
    """Hold the lock of the run folder; before it is released, all that this process has going on in Ray is ended.

    `names`: folders below the output, in which half-written files are deleted at the beginning and at the end.
    """
    going, ends, folders = work.Work(), ExitStack(), set(names)
    try:
        mine = ends.enter_context(lock.held(folder.root, on_loss=going.end))
        folder.remove_drafts(folders)
        ends.callback(lambda: folder.remove_drafts(folders) if not mine.lost else None)
        ends.enter_context(work.of_run(going, mine.check))
        try:
            yield
        except Exception:
            # A lost lock ends all work, and stages then fail with errors of many kinds. `check` raises the one that tells why.
            mine.check()
            raise
    finally:
        with interrupts.shielded():
            ends.close()
